"""A page that needs nothing else."""

import base64
import io
from html.parser import HTMLParser

from matplotlib.figure import Figure
from PIL import Image

from dogbreeds.reports.html import cell, image, link, page, svg, table


class Read(HTMLParser):
    """What a browser would fetch, and what it would show."""

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


def test_a_page_has_its_pictures_in_it_and_fetches_nothing() -> None:
    with io.BytesIO() as file:
        Image.new("RGB", (3, 2), (9, 8, 7)).save(file, "PNG")
        picture = file.getvalue()
    read = Read(page("a < b & c", svg(figure(1), "a line & more") + image(picture, "png", 'a "dog"')))
    assert read.tags.count("svg") == 1
    assert "a < b & c" in read.text
    assert "script" not in read.tags
    (source,) = read.sources
    assert source.startswith("data:image/png;base64,")
    assert base64.b64decode(source.partition(",")[2]) == picture


def test_the_same_figure_gives_the_same_text() -> None:
    assert svg(figure(1)) == svg(figure(1)) != svg(figure(2))
    assert svg(figure(1), "a line & more").startswith('<svg role="img" aria-label="a line &amp; more"')


def test_what_stands_in_a_table_is_text_and_headings_stand_above_their_numbers() -> None:
    shown = table(("breed<", "n"), [[cell(link("<b>", 'x"&')), cell("20", "number")], [cell("y"), cell("3", "number")]])
    assert "<th>breed&lt;</th><th class=number>n</th>" in shown
    assert '<td><a href="x&quot;&amp;">&lt;b&gt;</a></td><td class=number>20</td>' in shown
    assert "<th>n</th>" in table(("n",), [])
