"""Specs: frozen dataclasses of plain values that validate their own fields. All parts of a run derive from them.

A field is declared with a check, such as `number` or `one_of`, whose errors state what to type instead.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dogbreeds.core.errors import UserError
from dogbreeds.core.source import is_foreign, source_digest
from dogbreeds.core.text import digest

# Takes a config key and its value; returns the converted value, or raises UserError.
Check = Callable[[str, Any], Any]


def _checked_field(check: Check) -> Any:
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
    """Declare a field for a finite number. Integers are converted to floats.

    Args:
        above: exclusive lower bound.
        at_least: inclusive lower bound.
        below: exclusive upper bound.
        at_most: inclusive upper bound.
        example: valid value, for the error message.
    """
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    allowed = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)

    def check(key: str, value: Any) -> float:
        is_valid = (
            _is_number(value)
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )
        if not is_valid:
            raise UserError(
                f"{key} was {value!r}. It must be a finite number {allowed}. Type {key}={example:g}, for example."
            )
        return float(value)

    return _checked_field(check)


def integer(*, at_least: int, example: int, optional: bool = False) -> Any:
    """Declare a field for a whole number; with `optional`, null is allowed too."""

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

    return _checked_field(check)


def one_of(*choices: str, optional: bool = False) -> Any:
    """Declare a field for one of the given words; with `optional`, null is allowed too."""

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

    return _checked_field(check)


def boolean() -> Any:
    """Declare a field for true or false."""

    def check(key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"{key} was {value!r}. It must be true or false. Type {key}=true or {key}=false.")
        return value

    return _checked_field(check)


def text(*, example: str, optional: bool = False) -> Any:
    """Declare a field for a non-empty string, such as a path or an address; with `optional`, null is allowed too.

    A whole number is converted to the string that was typed.
    """

    def check(key: str, value: Any) -> str | None:
        if value is None and optional:
            return None
        # Hydra parses a folder name or run id of digits only as a number. One with a leading 0 stays a string, so no
        # digit is lost here.
        if type(value) is int:
            value = str(value)
        if not isinstance(value, str) or not value:
            raise UserError(f"{key} was {value!r}. It must be a non-empty string. Type {key}={example}, for example.")
        return value

    return _checked_field(check)


def integers(*, example: str) -> Any:
    """Declare a field for a list of whole numbers above 0."""

    def check(key: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not all(
            _is_number(item) and int(item) == item and item > 0 for item in value
        ):
            raise UserError(
                f"{key} was {value!r}. It must be a list of whole numbers above 0. Type '{key}={example}', for example."
            )
        return tuple(int(item) for item in value)

    return _checked_field(check)


def texts(*, example: str) -> Any:
    """Declare a field for a list of non-empty strings. The list may be empty."""

    def check(key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
            raise UserError(f"{key} was {value!r}. It must be a list of names. Type '{key}={example}', for example.")
        return tuple(value)

    return _checked_field(check)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs: the chosen option of a config group, or the settings of a command.

    Each field is declared with its check. Every default is in `conf/<group>/`.

    Attributes:
        group: name of the config group, which prefixes the keys in errors; empty for a command's own settings.
        implied: value that versions without a field implied, by field name. A field that is added to a spec is listed
            here, so that the runs of those versions are found: a run's key leaves it out while it has this value, and
            recorded configs may lack it.
    """

    group: ClassVar[str]
    implied: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            key = f"{self.group}.{field.name}" if self.group else field.name
            checked = field.metadata["check"](key, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)

    def plugin_digest(self, *ignored: str) -> str:
        """Return a digest of source and settings, after a colon, if the class belongs to a plugin; else an empty text.

        It is appended to what identifies the result of a class of the package.

        Args:
            ignored: fields that are left out.
        """
        if not is_foreign(type(self)):
            return ""
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name not in ignored}
        return f":{digest(json.dumps([source_digest(type(self)), settings], sort_keys=True).encode())}"
