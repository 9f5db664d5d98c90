"""Pages of the reference that are made from the sources: config groups, commands, and the API."""

import re
from pathlib import Path

import config_files
import yaml
from config_files import ConfigFile, Setting
from markdown_text import code, page, prose, shell, table
from spec_classes import PACKAGE, Field, spec_fields

CONF = PACKAGE.parent / "conf"
# Folders in conf/hydra/ whose files are chosen by the commands, not by users.
_INTERNAL_GROUPS = ("hydra/help", "hydra/hydra_logging", "hydra/job_logging")
# In the order in which a user meets them.
COMMANDS = (
    "train",
    "table",
    "ui",
    "evaluate",
    "compare",
    "predict",
    "export",
    "why",
    "soup",
    "probe",
    "judge",
    "extract",
    "cache",
    "pretrain",
)
# Pages of the site that lie where readers of the repository, and GitHub, look for them.
SHARED_PAGES = {
    "contributing/changelog.md": PACKAGE.parent / "CHANGELOG.md",
    "reference/security.md": PACKAGE.parent / "docs/SECURITY.md",
}
# Folders of the pictures that the site shares with the README.
_PICTURES = PACKAGE.parent / "docs/pictures"
_PICTURE_SUFFIXES = (".svg", ".png")
# Folder of the notebooks, seen from a tutorial in the repository and on the site.
_EXAMPLES, _EXAMPLES_ON_SITE = "](../../../examples/", "](../examples/"
_SPEC_OF_TRAIN = "dogbreeds.experiments.run.Ungrouped"
# Classes of settings that are nested in a command's config.
_NESTED_SPECS = {
    "only.": "dogbreeds.experiments.recorded_runs.Only",
    "probe.": "dogbreeds.experiments.probe_models.Probe",
    "tta.": "dogbreeds.inference.tta.Tta",
}
_INDENT = "  "


def groups() -> list[str]:
    """Return the config groups that users choose from, as folders below conf/."""
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")}
    return sorted(folders - {*_INTERNAL_GROUPS})


def options(group: str) -> list[ConfigFile]:
    """Read the options of a group, the default one first."""
    default = {choice.group: choice.option for choice in config_files.read_config(CONF / "train.yaml").choices}
    files = [config_files.read_config(path) for path in sorted((CONF / group).glob("*.yaml"))]
    return sorted(files, key=lambda file: (file.option != default.get(group), file.option))


# --- config -------------------------------------------------------------------


def group_page(group: str) -> str:
    """Return the page of a config group."""
    files = options(group)
    return page(
        f"# `{group}`",
        _default_sentence(group),
        table(
            ["option", "what it is"],
            [[f"[{code(file.option)}](#{_anchor(file)})", prose(file.summary)] for file in files],
        ),
        *(_option_section(group, file) for file in files),
    )


def _default_sentence(group: str) -> str:
    defaults = {choice.group: choice for choice in config_files.read_config(CONF / "train.yaml").choices}
    choice = defaults.get(group)
    if choice is None:
        return f"Options of `{group}=…`."
    comment = f" {prose(choice.comment[:1].upper() + choice.comment[1:])}." if choice.comment else ""
    default = f"Default: {code(choice.option)}." if choice.option != "null" else "By default none is chosen."
    overriding = [
        f" With the default {code(f'{other}={by.option}')} it is {code(chosen.option)}."
        for other, by in defaults.items()
        if other in groups() and by.option != "null"
        for chosen in config_files.read_config(CONF / other / f"{by.option}.yaml").choices
        if chosen.group == group
    ]
    return f"Options of `{group}=…`. {default}{''.join(overriding)}{comment}"


def _anchor(file: ConfigFile) -> str:
    return file.option.replace("_", "-")


def _option_section(group: str, file: ConfigFile) -> str:
    prefix = "" if file.is_global else f"{group.replace('/', '.')}."
    return page(
        f"## `{file.option}` {{ #{_anchor(file)} }}",
        *(prose(paragraph) for paragraph in file.paragraphs),
        shell(file.commands),
        _choices_sentence(file),
        _settings_table(file.settings, prefix, {f"{group}.": spec_fields(file.target)}),
        _class_sentence(file.target),
    ).rstrip()


def _choices_sentence(file: ConfigFile) -> str:
    chosen = [code(f"{choice.group}={choice.option}") for choice in file.choices if choice.overrides]
    return f"It also chooses {' and '.join(chosen)}, unless the command line names another option." if chosen else ""


def _settings_table(settings: tuple[Setting, ...], prefix: str, specs: dict[str, dict[str, Field]]) -> str:
    """Return the table of settings.

    Args:
        settings: of a config file.
        prefix: of their full names.
        specs: fields of the classes that they configure, by the beginning of their full names.
    """
    rows = []
    for setting in settings:
        key = f"{prefix}{setting.key}"
        field = next(
            (
                fields[key.removeprefix(start)]
                for start, fields in specs.items()
                if key.startswith(start) and key.removeprefix(start) in fields
            ),
            Field("", ""),
        )
        meaning = setting.comment.rstrip(";") or field.meaning
        rows.append([code(key), code(setting.default), prose(field.allowed), prose(meaning)])
    with_allowed = any(row[2] for row in rows)
    if not with_allowed:
        rows = [[row[0], row[1], row[3]] for row in rows]
    return table(["setting", "default", *(["allowed"] if with_allowed else []), "meaning"], rows)


def _class_sentence(target: str) -> str:
    return f"Class: [`{target}`][{target}]" if target.startswith("dogbreeds.") else ""


def groups_table() -> str:
    """Return the table of all config groups, for the overview page."""
    defaults = {choice.group: choice.option for choice in config_files.read_config(CONF / "train.yaml").choices}
    rows = []
    for group in sorted(groups(), key=lambda name: [*defaults, name].index(name)):
        names = [code(file.option) for file in options(group)]
        rows.append([f"[{code(group)}]({group}.md)", code(defaults.get(group, "null")), ", ".join(names)])
    return table(["group", "default", "options"], rows)


def train_settings() -> str:
    """Return the table of train's settings that belong to no group."""
    file = config_files.read_config(CONF / "train.yaml")
    return _settings_table(file.settings, "", {"": spec_fields(_SPEC_OF_TRAIN)})


# --- commands -----------------------------------------------------------------


def command_sections() -> str:
    """Return a section for each command, from its help text and its config."""
    return "\n".join(_command_section(name) for name in COMMANDS)


def _command_section(name: str) -> str:
    file = config_files.read_config(CONF / f"{name}.yaml")
    header, footer = _help(name)
    specs = {"": spec_fields(f"dogbreeds.{name}.Settings" if name != "train" else _SPEC_OF_TRAIN)}
    specs |= {start: spec_fields(target) for start, target in _NESTED_SPECS.items()}
    return page(
        f"## `{name}` {{ #{name} }}",
        *(_help_blocks(header) if header else [*map(prose, file.paragraphs), shell(file.commands)]),
        *_help_blocks(footer),
        *(prose(paragraph) for paragraph in file.paragraphs[1:] if header and paragraph.startswith("Measured")),
        _groups_sentence(file),
        _settings_table(file.settings, "", specs),
    )


def _help(command: str) -> tuple[str, str]:
    """Return the header and the footer of a command's help text; empty if it has none of its own."""
    text = (CONF / f"{command}.yaml").read_text(encoding="utf-8")
    match = re.search(r"override hydra/help: (\w+)", text)
    if match is None:
        return "", ""
    content = yaml.safe_load((CONF / "hydra/help" / f"{match[1]}.yaml").read_text(encoding="utf-8"))
    return content["header"].strip("\n"), content["footer"].strip("\n")


def _help_blocks(text: str) -> list[str]:
    """Turn a help text into paragraphs and blocks of commands; a label above a command becomes its comment."""
    blocks: list[str] = []
    commands: list[str] = []
    for paragraph in filter(None, text.split("\n\n")):
        prose_lines: list[str] = []
        for line in paragraph.splitlines():
            if line.startswith(_INDENT):
                if prose_lines:
                    commands += ["", f"# {' '.join(prose_lines).rstrip(':')}"]
                    prose_lines = []
                commands.append(
                    line.strip() if not commands or not commands[-1].endswith("\\") else f"  {line.strip()}"
                )
            else:
                prose_lines.append(line)
        if prose_lines:
            if commands:
                blocks.append(shell(commands[1:] if not commands[0] else commands))
                commands = []
            blocks.append(prose(" ".join(prose_lines)))
    if commands:
        blocks.append(shell(commands[1:] if not commands[0] else commands))
    return blocks


def _groups_sentence(file: ConfigFile) -> str:
    names = [choice.group for choice in file.choices if not choice.overrides]
    if names == ["train"]:
        return "Settings, apart from those of [`train`](#train):"
    if file.option == "train":
        return "Its [config groups](config/index.md) hold most of its settings. These belong to no group:"
    linked = [f"[`{name}`](config/{name}.md)" for name in names]
    return f"Settings, apart from those of {' and '.join(linked)}:" if linked else "Settings:"


# --- API ----------------------------------------------------------------------


def packages() -> list[str]:
    """Return the names of the packages within `dogbreeds`."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def package_page(package: str) -> str:
    """Return the API page of a package: its modules, each with what it documents."""
    modules = sorted(path.stem for path in (PACKAGE / package).glob("*.py") if path.stem != "__init__")
    return page(f"# `dogbreeds.{package}`", *(f"::: dogbreeds.{package}.{module}" for module in modules))


def packages_table() -> str:
    """Return the table of packages with the first sentence about each of their modules."""
    rows = []
    for package in packages():
        names = sorted(path.stem for path in (PACKAGE / package).glob("*.py") if path.stem != "__init__")
        rows.append([f"[`{package}`]({package}.md)", ", ".join(code(name) for name in names)])
    return table(["package", "modules"], rows)


def public_api() -> str:
    """Return the documentation of the modules of the public Python API."""
    return "\n\n".join(f"::: dogbreeds.{path.stem}" for path in sorted(PACKAGE.glob("api*.py")))


def pages() -> dict[str, str]:
    """Return the generated pages, Markdown by path below the pages of the site."""
    return (
        {f"reference/config/{group}.md": group_page(group) for group in groups()}
        | {f"reference/api/{package}.md": package_page(package) for package in packages()}
        | {path: source.read_text(encoding="utf-8") for path, source in SHARED_PAGES.items()}
    )


# Text that replaces `<!-- generated: <name> -->` in a page that is written by hand.
PARTS = {
    "commands": command_sections,
    "groups": groups_table,
    "train settings": train_settings,
    "packages": packages_table,
    "public api": public_api,
}


def pictures() -> dict[str, Path]:
    """Return the pictures that the site shares with the README, by path below the pages of the site."""
    return {f"pictures/{path.name}": path for path in sorted(_PICTURES.glob("*")) if path.suffix in _PICTURE_SUFFIXES}


def notebooks() -> dict[str, Path]:
    """Return the notebooks, which the site offers as files, by path below the pages of the site."""
    return {f"examples/{path.name}": path for path in sorted((PACKAGE.parent / "examples").glob("*.ipynb"))}


def fill(markdown: str, path: str) -> str:
    """Replace the markers of a page by the generated parts and by the pictures that exist, and its links to notebooks.

    Args:
        markdown: text of the page.
        path: path of the page below the pages of the site.

    Raises:
        KeyError: if there is no such part.
    """

    def picture(match: re.Match[str]) -> str:
        target = f"pictures/{match[1]}"
        return f"![{match[2]}]({'../' * path.count('/')}{target})" if target in pictures() else ""

    linked = markdown.replace(_EXAMPLES, _EXAMPLES_ON_SITE)
    filled = re.sub(r"<!-- generated: ([a-z ]+) -->", lambda match: PARTS[match[1]](), linked)
    return re.sub(r"<!-- picture: (\S+) \| ([^\n]+?) -->", picture, filled)
