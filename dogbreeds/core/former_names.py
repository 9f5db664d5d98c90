"""Settings and options that were renamed.

Version 0.2.0 gave settings the names of the field. Runs that earlier versions recorded have the old names in their
keys, parameters and configs, and users have them in scripts: the keys still hash the old names, records and configs are
read by both, and overrides are taken by both.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")

# New name by old name.
RENAMED_SETTINGS = {
    "data.breeds": "data.classes",
    "data.train_per_breed": "data.train_per_class",
    "data.val_per_breed": "data.val_per_class",
    "data.test_per_breed": "data.test_per_class",
    "preflight.photos": "preflight.images",
    # Recorded as parameters of a run; not settings.
    "data.photos.train": "data.images.train",
    "data.photos.val": "data.images.val",
    "data.photos.test": "data.images.test",
    # Settings of the commands compare, evaluate, export and pretrain.
    "breeds": "classes",
    "photos": "images",
    "photos_from": "images_from",
    "photos_per_breed": "images_per_class",
    "validation_photos_per_breed": "validation_images_per_class",
    "why.put_back": "why.reverts",
}
# Options of config groups, as they are typed: new one by old one.
RENAMED_OPTIONS = {"features=kept": "features=cached"}
_OLD_NAMES = {new: old for old, new in RENAMED_SETTINGS.items()}
# Parameters that earlier versions did not record, with the value that they implied.
IMPLIED_PARAMS = {
    "data.decoder": "tensorflow",
    "features.dtype": "float32",
    "features.runtime": "tensorflow",
    "features.precision": "float32",
    "features.layers": "[]",
}


def stored_name(name: str) -> str:
    """Return the name under which a setting enters the key of a run: its first one."""
    return _OLD_NAMES.get(name, name)


def with_new_overrides(overrides: Sequence[str]) -> list[str]:
    """Return overrides, as they are typed on the command line, with present names in the place of old ones."""
    return [_renamed_override(override) for override in overrides]


def _renamed_override(override: str) -> str:
    override = RENAMED_OPTIONS.get(override, override)
    # A bare word names a setting only after ~, which removes it. Otherwise it is the value of an option.
    name = re.match(r"(?:\+{0,2}(?=.*=)|~)([a-z_.]+)(?==|$)", override)
    if name is None or name[1] not in RENAMED_SETTINGS:
        return override
    return f"{override[: name.start(1)]}{RENAMED_SETTINGS[name[1]]}{override[name.end(1) :]}"


def with_new_names(settings: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Give recorded settings their present names. Where both names are there, the old one was set on purpose.

    Args:
        settings: by dotted name; without `prefix`, if one is given.
        prefix: beginning of all names, such as `data.`.
    """
    renamed = {
        RENAMED_SETTINGS[f"{prefix}{name}"].removeprefix(prefix): value
        for name, value in settings.items()
        if f"{prefix}{name}" in RENAMED_SETTINGS
    }
    return {name: value for name, value in settings.items() if f"{prefix}{name}" not in RENAMED_SETTINGS} | renamed
