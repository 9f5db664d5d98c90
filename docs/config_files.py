"""Reads the text of the files in `conf/`: header, commands, choices and settings, without running Hydra."""

import re
from dataclasses import dataclass
from pathlib import Path

# A line of a header that begins a new paragraph.
_STARTS_PARAGRAPH = re.compile(r"(Measured|Source|The guide)\b")
_COMMAND = "Run: "
# `key: value  # comment`.
_SETTING = re.compile(
    r"(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>'[^']*'|\"[^\"]*\"|[^#\s].*?))?(?: +# (?P<comment>.*))?"
)
# An item of a defaults list: `- override /data: miniature  # comment`.
_DEFAULT = re.compile(r"  - (?P<override>override )?/?(?P<group>[\w/]+)(?:: (?P<option>\w+))?(?: +# (?P<comment>.*))?")


@dataclass(frozen=True)
class Setting:
    """One setting of a config file.

    Attributes:
        key: dotted name within the file.
        default: its value, as it is written.
        comment: comment on the lines above it and at its end.
    """

    key: str
    default: str
    comment: str


@dataclass(frozen=True)
class Choice:
    """One item of a file's defaults list: the option of another group that it chooses.

    Attributes:
        group: name of the group.
        option: its option; empty for a group-less config.
        comment: comment at the end of its line.
        overrides: whether it replaces a choice that another file made.
    """

    group: str
    option: str
    comment: str
    overrides: bool


@dataclass(frozen=True)
class ConfigFile:
    """A file of `conf/`.

    Attributes:
        option: its name without suffix.
        paragraphs: its header without the commands.
        commands: the commands of its header.
        target: dotted path of the class that it configures; empty without one.
        settings: without targets and without Hydra's own.
        choices: its defaults list.
        is_global: whether its keys are written in full.
    """

    option: str
    paragraphs: tuple[str, ...]
    commands: tuple[str, ...]
    target: str
    settings: tuple[Setting, ...]
    choices: tuple[Choice, ...]
    is_global: bool

    @property
    def summary(self) -> str:
        """The first sentence of the header, with its full stop."""
        return self.paragraphs[0].split(". ")[0].removesuffix(".") + "."


def read_config(path: Path) -> ConfigFile:
    """Read a config file.

    Args:
        path: the YAML file.

    Raises:
        ValueError: if a line is neither a comment nor a setting.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    is_global = lines[0] == "# @package _global_"
    lines = lines[is_global:]
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    paragraphs, commands = _read_header(lines[:end])
    settings, choices = _read_body(lines[end:], path)
    targets = [setting.default for setting in settings if setting.key.rpartition(".")[2] == "_target_"]
    return ConfigFile(
        option=path.stem,
        paragraphs=tuple(paragraphs),
        commands=tuple(commands),
        target=targets[0] if targets else "",
        settings=tuple(setting for setting in settings if "_target_" not in setting.key),
        choices=tuple(choices),
        is_global=is_global,
    )


def _read_header(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the paragraphs and the commands of a header."""
    paragraphs: list[str] = []
    commands: list[str] = []
    is_new = True
    texts = [line.removeprefix("#").strip() for line in lines]
    for text in "\n".join(texts).replace("\\\n", "").splitlines():
        if text.startswith(_COMMAND):
            commands.append(text.removeprefix(_COMMAND))
            is_new = True
        elif not text:
            is_new = True
        elif is_new or _STARTS_PARAGRAPH.match(text):
            paragraphs.append(text)
            is_new = False
        else:
            paragraphs[-1] += f" {text}"
    return paragraphs, commands


def _read_body(lines: list[str], path: Path) -> tuple[list[Setting], list[Choice]]:
    """Return the settings and the defaults list of a file."""
    settings: list[Setting] = []
    choices: list[Choice] = []
    above: list[str] = []
    # Keys that the current line is nested in, with their indentation.
    parents: list[tuple[int, str]] = []
    section = ""
    for line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        if not line.startswith(" "):
            section = line.split(":")[0]
        if section == "hydra" or line == "defaults:":
            above = []
            continue
        if section == "defaults":
            choices += _read_choice(line, path)
            continue
        match = _SETTING.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: {line!r} is no setting")
        indent = len(match["indent"])
        parents = [(depth, key) for depth, key in parents if depth < indent]
        key = ".".join([*(key for _, key in parents), match["key"]])
        comment = " ".join([*above, match["comment"] or ""]).strip()
        above = []
        if match["value"] is None:
            parents.append((indent, match["key"]))
            # A comment on several settings is printed with the first of them.
            above = [f"{comment};"] if comment else []
        else:
            settings.append(Setting(key, match["value"], comment))
    return settings, choices


def _read_choice(line: str, path: Path) -> list[Choice]:
    if line.strip() == "- _self_":
        return []
    match = _DEFAULT.fullmatch(line)
    if match is None:
        raise ValueError(f"{path}: {line!r} is no item of a defaults list")
    return [Choice(match["group"], match["option"] or "", match["comment"] or "", bool(match["override"]))]
