"""HTML pages: self-contained, escaped, reproducible."""

import base64
import io
from html.parser import HTMLParser

from matplotlib.figure import Figure
from PIL import Image

from dogbreeds.reports.html import cell, image, link, page, svg, table


class PageParser(HTMLParser):
    """Collects what a browser would fetch, the tags, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [
            value or "" for name, value in attributes if name == "src" or (tag == "link" and name == "href")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def figure(height: float) -> Figure:
    drawn = Figure()
    drawn.subplots().plot([0, 1], [0, height])
    return drawn


def test_page_embeds_figures_and_images_and_fetches_nothing() -> None:
    with io.BytesIO() as file:
        Image.new("RGB", (3, 2), (9, 8, 7)).save(file, "PNG")
        picture = file.getvalue()
    parsed = PageParser(page("a < b & c", svg(figure(1), "a line & more") + image(picture, "png", 'a "dog"')))
    assert parsed.tags.count("svg") == 1
    assert "a < b & c" in parsed.text
    assert "script" not in parsed.tags
    (source,) = parsed.sources
    assert source.startswith("data:image/png;base64,")
    assert base64.b64decode(source.partition(",")[2]) == picture


def test_svg_of_the_same_figure_is_the_same_text() -> None:
    assert svg(figure(1)) == svg(figure(1)) != svg(figure(2))
    assert svg(figure(1), "a line & more").startswith('<svg role="img" aria-label="a line &amp; more"')


def test_table_escapes_text_and_aligns_headings_of_numeric_columns() -> None:
    element = table(
        ("class<", "n"), [[cell(link("<b>", 'x"&')), cell("20", "number")], [cell("y"), cell("3", "number")]]
    )
    assert "<th>class&lt;</th><th class=number>n</th>" in element
    assert '<td><a href="x&quot;&amp;">&lt;b&gt;</a></td><td class=number>20</td>' in element
    assert "<th>n</th>" in table(("n",), [])
