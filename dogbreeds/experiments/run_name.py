"""Short display names of runs and sweeps. All overrides are recorded as the tag and the parameter `overrides`."""

import re
from collections.abc import Mapping, Sequence

from dogbreeds.tracking.records import NOT_IN_RUN_KEY

# Environment variable with the keys that a sweep varies, separated by spaces. The processes of its jobs read it.
SWEPT_ENV = "DOGBREEDS_SWEPT"
# Overrides in a name, apart from those that the sweep varies.
_MAX_OVERRIDES = 3
# Characters of a value in a run's name, and of an override in a sweep's.
_MAX_VALUE_LENGTH = 24
_MAX_SWEPT_LENGTH = 70
# Groups whose option every name begins with.
_NAMED = ("model", "phase", "attempt")
# Says where parts are found, not which are used.
_PLACES = ("plugins",)


def run_name(choices: Mapping[str, str], overrides: Sequence[str], swept: Sequence[str] = ()) -> str:
    """Return a run's name: model, attempt or phase, and what distinguishes it. What its sweep varies comes first.

    Example: `lr=1e-2 miniature frozen head=linear`

    Args:
        choices: chosen option of each group.
        overrides: as they were typed.
        swept: keys that the sweep varies.
    """
    varied = [item for item in overrides if _key(item) in swept and _key(item) not in _NAMED]
    base = [choices["model"], choices.get("attempt", choices["phase"])]
    return " ".join([*_shortened(varied, len(varied)), *base, *_shortened(_others(overrides, swept), _MAX_OVERRIDES)])


def sweep_name(overrides: Sequence[str], keys: Sequence[str]) -> str:
    """Return a sweep's name: what it varies, as it was typed, then what else distinguishes it.

    Args:
        overrides: as they were typed.
        keys: keys that the sweep varies.
    """
    swept = [_cut(item, _MAX_SWEPT_LENGTH) for item in overrides if _key(item) in keys]
    named = [item.split("=", 1)[1] for item in overrides if _key(item) in _NAMED and _key(item) not in keys]
    return " ".join(["sweep", *swept, *named, *_shortened(_others(overrides, keys), _MAX_OVERRIDES)])


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys of the overrides that have several values, such as `optimizer.lr` of `optimizer.lr=1e-2,1e-3`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [each.key_or_group for each in parsed if each.is_sweep_override()]


def _others(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the overrides that a name need not begin with and that can change the result."""
    return [
        item
        for item in overrides
        if _key(item) not in (*keys, *_NAMED, *_PLACES) and _key(item).split(".")[0] not in NOT_IN_RUN_KEY
    ]


def _shortened(overrides: Sequence[str], count: int) -> list[str]:
    """Shorten the first overrides, `optimizer.lr=1e-2` to `lr=1e-2`; an ellipsis stands for more."""
    names = [_key(item).rpartition(".")[2] for item in overrides]
    short = [
        f"{name if names.count(name) == 1 else _key(item)}={_short_value(item.partition('=')[2])}"
        for item, name in zip(overrides[:count], names, strict=False)
    ]
    return [*short, *(["…"] if len(overrides) > count else [])]


def _short_value(value: str) -> str:
    """Shorten a value: a path to its last part, a long number to three digits."""
    if re.fullmatch(r"[\w.~-]*(/[\w.-]+)+", value):
        value = value.rpartition("/")[2]
    if re.fullmatch(r"-?\d*\.\d{6,}(e-?\d+)?", value):
        value = f"{float(value):.3g}"
    return _cut(value, _MAX_VALUE_LENGTH)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _cut(text: str, length: int) -> str:
    return f"{text[: length - 1]}…" if len(text) > length else text
