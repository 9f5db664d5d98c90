"""A page of HTML that needs nothing else: no script, no font, no file beside it. Its pictures lie in it."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: plain text, said above.
        body: HTML, as the other functions here give it.
    """
    return _FRAME.replace("<!--title-->", html.escape(title)).replace("<!--body-->", body)


def svg(figure: "Figure", alt: str = "") -> str:
    """A figure as part of a page: sharp at any size, and the same figure always the same text.

    Args:
        figure: Matplotlib's.
        alt: what it shows, for those who do not see it.
    """
    from matplotlib import rc_context

    with (
        io.StringIO() as file,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "dogbreeds", "font.family": "sans-serif"}),
    ):
        figure.savefig(file, format="svg", metadata={"Date": None})
        drawn = file.getvalue()[file.getvalue().index("<svg") :]
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1) if alt else drawn


def image(encoded: bytes, kind: str, alt: str) -> str:
    """A picture's file as part of a page.

    Args:
        encoded: the file, whole.
        kind: its format, such as `jpeg` or `png`.
        alt: what it shows, plain text.
    """
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(encoded).decode()}">'


def table(headings: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table that scrolls sideways where it is too wide; a heading stands above its numbers as they stand.

    Args:
        headings: plain text.
        rows: of cells that `cell` made.
    """
    lines = [list(row) for row in rows]
    kinds = [
        " class=number" if lines and lines[0][place].startswith("<td class=number>") else ""
        for place in range(len(headings))
    ]
    head = "".join(f"<th{kind}>{html.escape(heading)}</th>" for heading, kind in zip(headings, kinds, strict=True))
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def cell(inside: str, kind: str = "") -> str:
    """A table's cell.

    Args:
        inside: HTML: plain text goes through `html.escape` before.
        kind: its class, such as `number`, `reproduced` or `refuted`; empty for none.
    """
    # A number and its unit stay on one line
    return f"<td{f' class={kind}' if kind else ''}>{inside.replace(' %', '&nbsp;%')}</td>"


def link(text: str, address: str) -> str:
    """Plain text that leads to an address."""
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>'


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>dogbreeds: <!--title--></title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1c1c1c; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } a { color: #1f5fa8 }
.wide { overflow-x: auto } table { border-collapse: collapse; min-width: 45% }
th, td { text-align: left; padding: .4rem .45rem; border-bottom: 1px solid #ddd; vertical-align: top } th { font-weight: 600 }
td.result, td.number, td.run, td.not { white-space: nowrap } td.attempt { min-width: 7rem; overflow-wrap: anywhere }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums }
td.reproduced { color: #17692f; font-weight: 600 } td.refuted { color: #a3261b; font-weight: 600 } td.not { color: #666 }
figure { margin: 1rem 0 } svg, img { max-width: 100%; height: auto } li { margin: .2rem 0 } p { max-width: 60rem }
</style></head><body>
<h1><!--title--></h1>
<!--body-->
</body></html>
"""
