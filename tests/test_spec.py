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


def test_spec_converts_values_to_plain_types() -> None:
    sample = Sample(**GOOD | {"rate": 1, "count": 2.0})
    assert (sample.rate, sample.count, sample.widths, sample.names) == (1.0, 2, (3,), ())
    assert isinstance(sample.rate, float)
    assert isinstance(sample.count, int)
    assert hash(sample) == hash(Sample(**GOOD | {"rate": 1}))


@pytest.mark.parametrize(
    ("value", "rounded"), [(1e-50, "0"), (1e-40, "0"), (1e39, "inf"), (0.9999999999, "1"), (10**400, "inf")]
)
def test_number_must_be_within_its_bounds_in_float32_too(value: float, rounded: str) -> None:
    below_1 = number(above=0, below=1, example=0.1).metadata["check"]
    unbounded = number(above=0, example=0.1).metadata["check"]
    with pytest.raises(UserError, match=rf"^x was .*, which is {rounded} in float32\. It must be .*\. Type x=0\.1"):
        (below_1 if value < 1 else unbounded)("x", value)


def test_number_at_a_bound_that_float32_rounds_is_valid() -> None:
    check = number(at_least=0.1, at_most=0.3, example=0.2).metadata["check"]
    assert [check("x", value) for value in (0.1, 0.3)] == [0.1, 0.3]


RATE = "a finite number above 0 and at most 1"


@pytest.mark.parametrize(
    ("field", "value", "received", "allowed", "hint"),
    [
        ("rate", "abc", "'abc'", RATE, "Type sample.rate=0.5"),
        ("rate", 0, "0", RATE, "Type sample.rate=0.5"),
        ("rate", 1.01, "1.01", RATE, "Type sample.rate=0.5"),
        ("rate", math.nan, "nan", RATE, "Type sample.rate=0.5"),
        ("rate", math.inf, "inf", RATE, "Type sample.rate=0.5"),
        ("rate", True, "True", RATE, "Type sample.rate=0.5"),
        ("rate", None, "None", RATE, "Type sample.rate=0.5"),
        ("count", 1.5, "1.5", "a whole number of 1 or more, or null", "Type sample.count=3"),
        ("count", 0, "0", "a whole number of 1 or more, or null", "Type sample.count=3"),
        ("word", "green", "'green'", "one of red, blue", "Type sample.word=red"),
        ("flag", "yes", "'yes'", "true or false", "Type sample.flag=true or sample.flag=false."),
        ("name", "", "''", "a non-empty string", "Type sample.name=x"),
        ("widths", [0], "[0]", "a list of whole numbers above 0", "Type 'sample.widths=[2,1]'"),
        ("widths", 512, "512", "a list of whole numbers above 0", "Type 'sample.widths=[2,1]'"),
        ("names", "top", "'top'", "a list of names", "Type 'sample.names=[a]'"),
    ],
)
def test_spec_names_value_limits_and_override_for_an_invalid_field(
    field: str, value: object, received: str, allowed: str, hint: str
) -> None:
    with pytest.raises(UserError) as refusal:
        Sample(**GOOD | {field: value})
    first, second, third = str(refusal.value).split(". ", 2)
    assert first == f"sample.{field} was {received}"
    assert second == f"It must be {allowed}"
    assert third.startswith(hint)
    assert third.removeprefix(hint) in ("", ", for example.")
