"""Texts for people: received values, sizes, and shortened messages of libraries."""

import pytest

from dogbreeds.core.text import printable, received, shorten, size_text


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (640, "640 B"),
        (999, "999 B"),
        (999.9, "1 KB"),
        (1_536, "1.5 KB"),
        (14_700_000, "14.7 MB"),
        (999_600_000, "1 GB"),
        (50 * 10**9, "50 GB"),
        (123_456_789_012, "123 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_size_is_in_the_unit_that_fits(size: float, expected: str) -> None:
    assert size_text(size) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Short.\n", "Short"),
        ("One two.  Three four five six seven eight.", "One two"),
        ("See e.g. Nine for more than forty characters in all", "See e.g. Nine for more than…"),
        ("x" * 50, f"{'x' * 29}…"),
        ("mlflow.db and so on and so on and on and on", "mlflow.db and so on and so on…"),
    ],
)
def test_shortened_text_ends_after_a_sentence_or_a_word(text: str, expected: str) -> None:
    assert shorten(text, 30) == expected


def test_names_that_reverse_text_are_shown_escaped() -> None:
    assert printable("gpj.\u202e\n.exe") == "gpj.\\u202e\\n.exe"
    assert printable("כלב.jpg") == "כלב.jpg"


def test_received_value_is_printable_and_short() -> None:
    assert received("a\0b") == r"'a\x00b'"
    assert received(0.5) == "0.5"
    assert received("x" * 5000) == f"'{'x' * 49}…{'x' * 49}' (5,002 characters)"
    assert received([10**5000]) == "a number of more than 4,300 digits"
