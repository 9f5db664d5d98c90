"""Self-contained HTML pages: no scripts, no fonts and no other files. Figures and images are embedded."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page(title: str, body: str) -> str:
    """Build a complete page.

    Args:
        title: plain text, for the heading and the window.
        body: HTML, as the other functions of this module return it.
    """
    return _TEMPLATE.replace("<!--title-->", html.escape(title)).replace("<!--body-->", body)


def svg(figure: "Figure", alt: str = "") -> str:
    """Render a figure as an inline SVG element. The same figure always gives the same text.

    Args:
        figure: the Matplotlib figure.
        alt: description for screen readers, plain text.
    """
    from matplotlib import rc_context

    with (
        io.StringIO() as file,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "dogbreeds", "font.family": "sans-serif"}),
    ):
        figure.savefig(file, format="svg", metadata={"Date": None})
        element = file.getvalue()[file.getvalue().index("<svg") :]
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1) if alt else element


def image(encoded: bytes, kind: str, alt: str) -> str:
    """Embed an image file in an `img` element.

    Args:
        encoded: content of the file.
        kind: its format, such as `jpeg` or `png`.
        alt: description for screen readers, plain text.
    """
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(encoded).decode()}">'


def table(headings: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Build a table that scrolls sideways if it is too wide. Headings of numeric columns are right-aligned.

    Args:
        headings: plain text.
        rows: cells, as `cell` returns them. The first row decides which columns are numeric.
    """
    lines = [list(row) for row in rows]
    classes = [
        " class=number" if lines and lines[0][column].startswith("<td class=number>") else ""
        for column in range(len(headings))
    ]
    head = "".join(
        f"<th{css_class}>{html.escape(heading)}</th>" for heading, css_class in zip(headings, classes, strict=True)
    )
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def cell(content: str, css_class: str = "") -> str:
    """Build a table cell.

    Args:
        content: HTML. Pass plain text through `html.escape` first.
        css_class: such as `number`, `reproduced` or `refuted`; empty for none.
    """
    # A number and its unit stay on one line.
    content = content.replace(" %", "&nbsp;%")
    return f"<td{f' class={css_class}' if css_class else ''}>{content}</td>"


def link(text: str, url: str) -> str:
    """Build a hyperlink.

    Args:
        text: plain text.
        url: the target.
    """
    return f'<a href="{html.escape(url)}">{html.escape(text)}</a>'


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>dogbreeds: <!--title--></title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem;
  color: #1c1c1c; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } a { color: #1f5fa8 }
.wide { overflow-x: auto } table { border-collapse: collapse; min-width: 45% }
th, td { text-align: left; padding: .4rem .45rem; border-bottom: 1px solid #ddd; vertical-align: top }
th { font-weight: 600 }
td.result, td.number, td.run, td.not { white-space: nowrap } td.attempt { min-width: 7rem; overflow-wrap: anywhere }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums }
td.reproduced { color: #17692f; font-weight: 600 } td.refuted { color: #a3261b; font-weight: 600 }
td.not { color: #666 }
figure { margin: 1rem 0 } svg, img { max-width: 100%; height: auto } li { margin: .2rem 0 } p { max-width: 60rem }
</style></head><body>
<h1><!--title--></h1>
<!--body-->
</body></html>
"""
