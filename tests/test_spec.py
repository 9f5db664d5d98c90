import math
from dataclasses import dataclass

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, boolean, integer, integers, number, one_of, text, texts


@dataclass(frozen=True, kw_only=True)
class Sample(Spec):
    group = "sample"
    rate: float = number(above=0, at_most=1, example=0.5)
    count: int | None = integer(at_least=1, example=3, optional=True)
    word: str = one_of("red", "blue")
    flag: bool = boolean()
    name: str | None = text(example="x", optional=True)
    widths: tuple[int, ...] = integers(example="[2,1]")
    names: tuple[str, ...] = texts(example="[a]")


GOOD = {"rate": 0.5, "count": 2, "word": "red", "flag": True, "name": "x", "widths": [3], "names": []}


def test_values_become_plain_types() -> None:
    sample = Sample(**GOOD | {"rate": 1, "count": 2.0})
    assert (sample.rate, sample.count, sample.widths, sample.names) == (1.0, 2, (3,), ())
    assert isinstance(sample.rate, float)
    assert isinstance(sample.count, int)
    assert hash(sample) == hash(Sample(**GOOD | {"rate": 1}))


@pytest.mark.parametrize(
    ("field", "value", "sentences"),
    [
        (
            "rate",
            "abc",
            (
                "sample.rate was 'abc'. It must be a finite number above 0 and at most 1. Type sample.rate=0.5, for"
                " example."
            ),
        ),
        (
            "rate",
            0,
            "sample.rate was 0. It must be a finite number above 0 and at most 1. Type sample.rate=0.5, for example.",
        ),
        (
            "rate",
            1.01,
            (
                "sample.rate was 1.01. It must be a finite number above 0 and at most 1. Type sample.rate=0.5, for"
                " example."
            ),
        ),
        (
            "rate",
            math.nan,
            "sample.rate was nan. It must be a finite number above 0 and at most 1. Type sample.rate=0.5, for example.",
        ),
        (
            "rate",
            math.inf,
            "sample.rate was inf. It must be a finite number above 0 and at most 1. Type sample.rate=0.5, for example.",
        ),
        (
            "rate",
            True,
            (
                "sample.rate was True. It must be a finite number above 0 and at most 1. Type sample.rate=0.5, for"
                " example."
            ),
        ),
        (
            "rate",
            None,
            (
                "sample.rate was None. It must be a finite number above 0 and at most 1. Type sample.rate=0.5, for"
                " example."
            ),
        ),
        (
            "count",
            1.5,
            "sample.count was 1.5. It must be a whole number of 1 or more, or null. Type sample.count=3, for example.",
        ),
        (
            "count",
            0,
            "sample.count was 0. It must be a whole number of 1 or more, or null. Type sample.count=3, for example.",
        ),
        ("word", "green", "sample.word was 'green'. It must be one of red, blue. Type sample.word=red, for example."),
        ("flag", "yes", "sample.flag was 'yes'. It must be true or false. Type sample.flag=true or sample.flag=false."),
        ("name", "", "sample.name was ''. It must be a text. Type sample.name=x, for example."),
        (
            "widths",
            [0],
            (
                "sample.widths was [0]. It must be a list of whole numbers above 0. Type 'sample.widths=[2,1]', for"
                " example."
            ),
        ),
        (
            "widths",
            512,
            (
                "sample.widths was 512. It must be a list of whole numbers above 0. Type 'sample.widths=[2,1]', for"
                " example."
            ),
        ),
        ("names", "top", "sample.names was 'top'. It must be a list of names. Type 'sample.names=[a]', for example."),
    ],
)
def test_a_wrong_value_is_said_in_three_sentences(field: str, value: object, sentences: str) -> None:
    with pytest.raises(UserError) as refusal:
        Sample(**GOOD | {field: value})
    assert str(refusal.value) == sentences
