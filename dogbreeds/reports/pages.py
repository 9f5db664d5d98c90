"""Self-contained HTML pages from templates: no scripts, no fonts and no other files. Figures and images are embedded.

Every value is escaped. A template or a value that is missing is an error.
"""

import base64
import functools
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure


def render(template: str, **values: object) -> str:
    """Render a page.

    Args:
        template: name of a file in `templates/`, without its suffixes.
        values: what the template shows, as plain data. Every page needs a `title`.
    """
    return environment().get_template(f"{template}.html.j2").render(values)


@functools.cache
def environment() -> "Environment":
    """Return the environment of the templates, with the filters that embed figures and images."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    built = Environment(
        loader=PackageLoader("dogbreeds.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    built.filters |= {"svg": svg, "data_uri": data_uri}
    return built


def svg(figure: "Figure", alt: str) -> "Markup":
    """Render a figure as an inline SVG element. The same figure always gives the same text.

    Args:
        figure: the Matplotlib figure.
        alt: description for screen readers.
    """
    from markupsafe import Markup
    from matplotlib import rc_context

    with (
        io.StringIO() as file,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "dogbreeds", "font.family": "sans-serif"}),
    ):
        figure.savefig(file, format="svg", metadata={"Date": None})
        rest = file.getvalue().partition("<svg")[2]
    # Matplotlib escapes the texts in a figure.
    return Markup('<svg role="img" aria-label="{}"').format(alt) + Markup(rest)


def data_uri(encoded: bytes, kind: str) -> str:
    """Return the address of an embedded image.

    Args:
        encoded: content of the image's file.
        kind: its format, such as `jpeg` or `png`.
    """
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
