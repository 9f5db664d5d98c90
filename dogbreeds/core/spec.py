"""Specs: frozen dataclasses of plain values that validate their own fields. All parts of a run derive from them.

A field is declared with a check, such as `number` or `one_of`, whose errors state what to type instead.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import UNPRINTABLE, received

# Takes a config key and its value; returns the converted value, or raises UserError.
Check = Callable[[str, Any], Any]
# Largest whole number of a field without an upper bound of its own: shapes and counts of TensorFlow are int32.
_MAX_INTEGER = 2**31 - 1
# The largest seed that NumPy and Keras accept.
MAX_SEED = 2**32 - 1
# Value of a setting that is decided when a run starts.
AUTO = "auto"
# Smallest float32 that TensorFlow does not flush to zero.
_MIN_FLOAT32 = 2.0**-126
# Most characters of a text, and most bytes of a file's name.
_MAX_CHARACTERS = 4000
_MAX_NAME_BYTES = 255


def _checked_field(check: Check, **default: Any) -> Any:
    return dataclasses.field(metadata={"check": check}, **default)


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _is_integer(value: Any, at_least: int, at_most: float) -> bool:
    return _is_number(value) and at_least <= value <= at_most and int(value) == value


def _as_float32(value: float) -> float:
    """Round as TensorFlow does; infinite beyond the largest float32, and 0 below the smallest."""
    try:
        (rounded,) = struct.unpack("f", struct.pack("f", float(value)))
    except OverflowError:
        return math.inf
    return rounded if abs(rounded) >= _MIN_FLOAT32 else 0.0


def number(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    example: float,
    optional: bool = False,
) -> Any:
    """Declare a field for a finite number; with `optional`, null is allowed too. Integers are converted to floats.

    Args:
        above: exclusive lower bound.
        at_least: inclusive lower bound.
        below: exclusive upper bound.
        at_most: inclusive upper bound.
        example: valid value, for the error message.
        optional: whether null is allowed.
    """
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    allowed = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)

    def is_within(value: float, convert: Callable[[float], float]) -> bool:
        return (
            (above is None or value > convert(above))
            and (at_least is None or value >= convert(at_least))
            and (below is None or value < convert(below))
            and (at_most is None or value <= convert(at_most))
        )

    null = ", or null" if optional else ""

    def check(key: str, value: Any) -> float | None:
        if value is None and optional:
            return None
        if not _is_number(value) or not is_within(value, float):
            raise UserError(
                f"{key} was {received(value)}. It must be a finite number {allowed}{null}. Type {key}={example:g}, for"
                " example."
            )
        # Networks are trained in float32, where 1e-50 is 0 and 0.999999999 is 1.
        rounded = _as_float32(value)
        if not math.isfinite(rounded) or not is_within(rounded, _as_float32) or (rounded == 0) != (value == 0):
            raise UserError(
                f"{key} was {received(value)}, which is {rounded:g} in float32. It must be a finite number"
                f" {allowed} in that precision too. Type {key}={example:g}, for example."
            )
        return float(value)

    return _checked_field(check)


def integer(*, at_least: int, at_most: int | None = None, example: int, optional: bool = False) -> Any:
    """Declare a field for a whole number; with `optional`, null is allowed too.

    Args:
        at_least: lower bound.
        at_most: upper bound; None for that of int32.
        example: valid value, for the error message.
        optional: whether null is allowed.
    """
    limit = _MAX_INTEGER if at_most is None else at_most

    def check(key: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        if not _is_integer(value, at_least, limit):
            # The limit of int32 is of interest only to those who exceed it.
            is_bounded = at_most is not None or (_is_number(value) and value > limit)
            allowed = f"from {at_least} to {limit}" if is_bounded else f"of {at_least} or more"
            raise UserError(
                f"{key} was {received(value)}. It must be a whole number {allowed}{', or null' if optional else ''}."
                f" Type {key}={example}, for example."
            )
        return int(value)

    return _checked_field(check)


def seed(*, example: int = 0) -> Any:
    """Declare a field for the seed of random generators."""
    return integer(at_least=0, at_most=MAX_SEED, example=example)


def one_of(*choices: str, optional: bool = False, **default: str) -> Any:
    """Declare a field for one of the given words, with a `default` if that is given; null with `optional`."""

    def check(key: str, value: Any) -> str | None:
        if value is None and optional:
            return None
        if value not in choices:
            null = ", or null" if optional else ""
            raise UserError(
                f"{key} was {received(value)}. It must be one of {', '.join(choices)}{null}. Type {key}={choices[0]},"
                " for example."
            )
        return str(value)

    return _checked_field(check, **default)


def boolean(**default: bool) -> Any:
    """Declare a field for true or false. `default` is the value where none was recorded."""

    def check(key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"{key} was {received(value)}. It must be true or false. Type {key}=true or {key}=false.")
        return value

    return _checked_field(check, **default)


def text(*, example: str, optional: bool = False) -> Any:
    """Declare a field for a non-empty string, such as a name; with `optional`, null is allowed too.

    A whole number is converted to the string that was typed.
    """

    def check(key: str, value: Any) -> str | None:
        if value is None and optional:
            return None
        value = _typed(value)
        if not isinstance(value, str) or not value:
            raise UserError(
                f"{key} was {received(value)}. It must be a non-empty string. Type {key}={example}, for example."
            )
        if not _is_storable(value):
            raise UserError(
                f"{key} was {received(value)}. It must be a string without control characters, of at most"
                f" {_MAX_CHARACTERS} characters. Type {key}={example}, for example."
            )
        return value

    return _checked_field(check)


def regular_expression(*, example: str) -> Any:
    """Declare a field for a regular expression, or null, which is its default."""

    def check(key: str, value: Any) -> str | None:
        value = text(example=example, optional=True).metadata["check"](key, value)
        try:
            re.compile(value or "")
        except re.error as error:
            raise UserError(
                f"{key} was {received(value)} ({error}). It must be a regular expression of Python. Type"
                f" '{key}={example}', for example."
            ) from error
        return value

    return _checked_field(check, default=None)


def path(*, example: str, optional: bool = False, **default: None) -> Any:
    """Declare a field for the path of a file or folder, which need not exist; or an address, or a word as `latest`.

    Args:
        example: valid value, for the error message.
        optional: whether null is allowed.
        default: `default=None` for a field that need not be given.
    """
    check_text = text(example=example, optional=optional).metadata["check"]

    def check(key: str, value: Any) -> str | None:
        value = check_text(key, value)
        if value is not None and not _is_path(value):
            raise UserError(
                f"{key} was {received(value)}. It must be a path whose names have at most {_MAX_NAME_BYTES} bytes, and"
                f" after ~ the name of a user. Type {key}={example}, for example."
            )
        return value

    return _checked_field(check, **default)


def any_path(*, example: str) -> Any:
    """Declare a field for a path, or null, that is checked where it is opened."""

    def check(key: str, value: Any) -> str | None:
        if value is not None and (not isinstance(_typed(value), str) or not _typed(value)):
            raise UserError(
                f"{key} was {received(value)}. It must be a non-empty string. Type {key}={example}, for example."
            )
        return _typed(value)

    return _checked_field(check)


def _typed(value: Any) -> Any:
    """Return the string that was typed if Hydra parsed it as a whole number, such as a run's id of digits only.

    One with a leading 0 stays a string, so no digit is lost here.
    """
    # Python writes no integer of more than 4,300 digits, about 14,000 bits.
    return str(value) if type(value) is int and value.bit_length() <= 14_000 else value


def _is_storable(value: str) -> bool:
    """Whether files, databases and terminals can hold a string."""
    return not UNPRINTABLE.search(value) and len(value) <= _MAX_CHARACTERS


def _is_path(value: str) -> bool:
    if "://" in value:
        return True
    try:
        Path(value).expanduser()
    except RuntimeError:
        return False
    return all(len(name.encode()) <= _MAX_NAME_BYTES for name in value.split("/"))


def integers(*, at_most: int = _MAX_INTEGER, max_items: int = 100, example: str) -> Any:
    """Declare a field for a list of whole numbers above 0.

    Args:
        at_most: upper bound of the numbers.
        max_items: how many there may be.
        example: valid value, for the error message.
    """

    def check(key: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not all(_is_integer(item, 1, math.inf) for item in value):
            raise UserError(
                f"{key} was {received(value)}. It must be a list of whole numbers above 0. Type '{key}={example}', for"
                " example."
            )
        if len(value) > max_items or any(item > at_most for item in value):
            raise UserError(
                f"{key} was {received(value)}. It must be a list of at most {max_items} numbers, none above {at_most}."
                f" Type '{key}={example}', for example."
            )
        return tuple(int(item) for item in value)

    return _checked_field(check)


def texts(*, example: str) -> Any:
    """Declare a field for a list of non-empty strings. The list may be empty."""

    def check(key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(item, str) and item and _is_storable(item) for item in value
        ):
            raise UserError(
                f"{key} was {received(value)}. It must be a list of names. Type '{key}={example}', for example."
            )
        return tuple(value)

    return _checked_field(check)


def mapping(*, example: str) -> Any:
    """Declare a field for names with a plain value each, none by default. It holds pairs, since specs are hashed."""

    def check(key: str, value: Any) -> tuple[tuple[str, Any], ...]:
        # A copy of a spec is built from its pairs.
        pairs = dict(value or ()) if isinstance(value, (Mapping, tuple, type(None))) else {"": value}
        if not all(str(name).isidentifier() and not isinstance(item, (Mapping, list)) for name, item in pairs.items()):
            raise UserError(
                f"{key} was {received(value)}. It must be names with a text, number, true, false or null each. Type"
                f" '{key}={example}', for example."
            )
        return tuple(sorted(pairs.items()))

    return _checked_field(check, default=())


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

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # A class of a plugin may have implied values of its own.
        declared = [vars(base).get("implied", {}) for base in reversed(cls.__mro__)]
        cls.implied = {name: value for values in declared for name, value in values.items()}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            key = f"{self.group}.{field.name}" if self.group else field.name
            checked = field.metadata["check"](key, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)
