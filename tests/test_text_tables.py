"""Text tables: their width, alignment and characters; Markdown and CSV."""

import csv
import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.text import Text

import dogbreeds
from dogbreeds.core.text import csv_rows, neutralise_formula, restore_formula
from dogbreeds.reports.tables import Column, fitted, linked, markdown_table, paragraph, text_table

COLUMNS = (Column("name", min_width=8), Column("mean accuracy", numeric=True), Column("verdict"))
ROWS = [
    ("miniature frozen head.widths=[32,16] data.root=/a/long/folder/of/photos", "100.0 %", "learned"),
    ("犬の写真 [bold]not markup[/bold] :dog:", "5.0 %", "never learned"),
]


def bare(text: str) -> str:
    """Remove styles and hyperlinks."""
    return re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", text)


@pytest.mark.parametrize("width", [12, 20, 30, 40, 60, 79, 80, 100, 150])
def test_table_fits_a_terminal_and_shows_every_character(width: int) -> None:
    lines = bare(text_table(COLUMNS, ROWS, width)).splitlines()
    assert max(map(cell_len, lines)) <= width
    shown = "".join(lines)
    for row in ROWS:
        # Cells of a wrapped row alternate on its lines, so the characters are counted.
        for character in set("".join(row)) - {" ", "…"}:
            assert shown.count(character) >= "".join(row).count(character)
    assert "…" not in shown


def test_table_wraps_its_longest_texts_first() -> None:
    lines = bare(text_table(COLUMNS, ROWS, 60)).splitlines()
    assert [line for line in lines if line.endswith("100.0 %  learned")]
    assert [line for line in lines if line.endswith("5.0 %  never learned")]
    narrow = bare(text_table(COLUMNS, ROWS, 40)).splitlines()
    # Headings are wrapped between words before cells are.
    assert [line for line in narrow if line.endswith(" 100.0 %  learned")]
    assert not [line for line in narrow if "mean accuracy" in line]
    assert [line.split()[0] for line in narrow if "mean" in line or "accuracy" in line] == ["mean", "name"]


def test_table_uses_a_wide_terminal() -> None:
    lines = bare(text_table(COLUMNS, ROWS, 120)).splitlines()
    assert len(lines) == 1 + 2 + 2 + 1
    assert [line.rstrip() for line in lines] == text_table(COLUMNS, ROWS, None).splitlines()


def test_table_outside_a_terminal_has_one_line_per_row_with_aligned_numbers() -> None:
    rows = [("x" * 5_000, "1", "[red]a"), ("y", "1,000", "b")]
    _, heading, rule, first, second, _ = text_table(COLUMNS, rows, None).split("\n")[:-1]
    assert first == f" {'x' * 5_000}              1  [red]a"
    assert second == f" {'y'.ljust(5_000)}          1,000  b"
    assert heading == f" {'name'.ljust(5_000)}  mean accuracy  verdict"
    assert set(rule.strip()) == {"─"}


def test_table_without_headings_has_only_rows() -> None:
    assert text_table((Column(), Column(numeric=True)), [("a", "1"), ("bc", "10")], None, gap=3) == "a     1\nbc   10\n"


def test_table_escapes_control_characters() -> None:
    printed = text_table((Column(),), [("a\x1b[31m\tb\r\n\x07\u2028\udcff",)], 80)
    assert printed == "a\\x1b[31m\\tb\\r\\n\\x07\\u2028\\udcff\n"
    assert paragraph("a\nb", None) == "a\\nb\n"
    assert linked("a\x1b", "http://x").plain == r"a\x1b"


def test_table_has_no_colours_and_links_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [(linked("a1", "http://x/1"), "True 12 'text'"), (Text("b2", "red"), "")]
    printed = text_table((Column("run"), Column("text")), rows, 80) + paragraph("bold 12", 80, "bold")
    assert "\x1b]8;" in printed
    assert "http://x/1\x1b\\a1" in printed
    # Bold is the only style.
    assert set(re.findall(r"\x1b\[([0-9;]*)m", printed)) == {"0", "1"}
    assert "\x1b" not in text_table((Column("run"), Column("text")), rows, None) + paragraph("bold 12", None, "bold")


def test_paragraph_is_wrapped_between_words_and_indented() -> None:
    text = "one two three four five"
    assert paragraph(text, 12, indent=2) == "  one two\n  three four\n  five\n"
    assert paragraph(text, None, indent=2) == f"  {text}\n"
    assert paragraph("x" * 25, 10) == f"{'x' * 10}\n{'x' * 10}\n{'x' * 5}\n"


def test_fitted_pads_a_text_or_shortens_its_middle() -> None:
    assert fitted("photos/summer/dog.jpg", 11) == "photo…g.jpg"[:5] + "…" + "g.jpg"
    assert fitted("short", 8) == "short   "
    for width in range(1, 12):
        assert cell_len(fitted("犬の写真です.jpg", width)) == width


def test_markdown_and_csv_keep_each_row_on_its_line() -> None:
    assert markdown_table(("a", "b"), [("x|y", "z\nw")]) == "| a | b |\n| --- | --- |\n| x\\|y | z\\nw |"
    rows = [('say "x", y', 1.5), ("z\nw", "")]
    printed = csv_rows([("a", "b"), *rows])
    assert list(csv.reader(io.StringIO(printed))) == [["a", "b"], ['say "x", y', "1.5"], ["z\nw", ""]]
    assert "\r" not in printed


FORMULAS = [
    "=1+1",
    "+cmd",
    "-x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'=1",
    "''-x",
    "-0.5 %",
    "+1+1",
    "--5",
    "-",
    "-0.5\n",
]
PLAIN = ["", "dog", "a=b", "'", "'tis", "–", "-0.5", "+3", "-1e-9", "-.5", "犬", " =1"]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_csv_has_no_formula_and_gives_each_text_back(text: str) -> None:
    (cell,) = next(csv.reader(io.StringIO(csv_rows([[text]]), newline="")))
    assert cell == (f"'{text}" if text in FORMULAS else text)
    assert restore_formula(cell) == text


def test_neutralised_texts_are_restored_whatever_apostrophes_they_have() -> None:
    for text in (f"{apostrophes}{text}" for text in (*FORMULAS, *PLAIN) for apostrophes in ("", "'", "''")):
        assert restore_formula(neutralise_formula(text)) == text


def test_csv_leaves_numbers_as_they_are() -> None:
    assert csv_rows([[-0.5, -3, 1e-9, None]]) == "-0.5,-3,1e-09,\n"


def test_csv_cell_with_a_separator_of_some_spreadsheets_is_quoted() -> None:
    assert csv_rows([["a;=1+1", 2], ["b", 3]]) == '"a;=1+1",2\nb,3\n'


def test_only_core_text_writes_csv() -> None:
    package = Path(dogbreeds.__file__).parent
    writes = re.compile(r"\bcsv\.(writer|DictWriter)\b|to_csv\(|from csv import")
    assert [file for file in package.rglob("*.py") if writes.search(file.read_text())] == [package / "core/text.py"]
