"""What every part of a run has in common: a frozen dataclass of plain values that checks itself and says what to type."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

from dogbreeds.core.errors import UserError

Check = Callable[[str, Any], Any]


def _declared(check: Check) -> Any:
    return dataclasses.field(metadata={"check": check})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    example: float,
) -> Any:
    """A field that holds a finite number; integers are taken as floats."""
    limits = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    said = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)

    def check(key: str, value: Any) -> float:
        fits = (
            _is_number(value)
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )
        if not fits:
            raise UserError(
                f"{key} was {value!r}. It must be a finite number {said}. Type {key}={example:g}, for example."
            )
        return float(value)

    return _declared(check)


def integer(*, at_least: int, example: int, optional: bool = False) -> Any:
    """A field that holds a whole number, or null where `optional`."""

    def check(key: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        if not _is_number(value) or int(value) != value or value < at_least:
            null = ", or null" if optional else ""
            raise UserError(
                f"{key} was {value!r}. It must be a whole number of {at_least} or more{null}. Type {key}={example}, for"
                " example."
            )
        return int(value)

    return _declared(check)


def one_of(*choices: str, optional: bool = False) -> Any:
    """A field that holds one of these words, or null where `optional`."""

    def check(key: str, value: Any) -> str | None:
        if value is None and optional:
            return None
        if value not in choices:
            null = ", or null" if optional else ""
            raise UserError(
                f"{key} was {value!r}. It must be one of {', '.join(choices)}{null}. Type {key}={choices[0]}, for"
                " example."
            )
        return str(value)

    return _declared(check)


def boolean() -> Any:
    """A field that is true or false."""

    def check(key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"{key} was {value!r}. It must be true or false. Type {key}=true or {key}=false.")
        return value

    return _declared(check)


def text(*, example: str, optional: bool = False) -> Any:
    """A field that holds a non-empty text, such as a path or an address, or null where `optional`; a whole number is taken as it was typed."""

    def check(key: str, value: Any) -> str | None:
        if value is None and optional:
            return None
        # A folder's name, or the beginning of a run's id, may be all digits; none that begin with 0 come as a number
        if type(value) is int:
            value = str(value)
        if not isinstance(value, str) or not value:
            raise UserError(f"{key} was {value!r}. It must be a text. Type {key}={example}, for example.")
        return value

    return _declared(check)


def integers(*, example: str) -> Any:
    """A field that holds a list of whole numbers above zero."""

    def check(key: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not all(
            _is_number(item) and int(item) == item and item > 0 for item in value
        ):
            raise UserError(
                f"{key} was {value!r}. It must be a list of whole numbers above 0. Type '{key}={example}', for example."
            )
        return tuple(int(item) for item in value)

    return _declared(check)


def texts(*, example: str) -> Any:
    """A field that holds a list of texts, possibly empty."""

    def check(key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
            raise UserError(f"{key} was {value!r}. It must be a list of names. Type '{key}={example}', for example.")
        return tuple(value)

    return _declared(check)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A config group's chosen option, or, where the group is empty, settings that stand alone.

    Each field is declared with its check; every default lives in `conf/<group>/`.
    """

    group: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            key = f"{self.group}.{field.name}" if self.group else field.name
            checked = field.metadata["check"](key, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)
