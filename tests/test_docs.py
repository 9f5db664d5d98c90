"""The documentation's pages: their commands compose, and the names and messages in them are those of the code.

`make docs` builds the site strictly, which checks links, anchors and references.
"""

import ast
import re
from pathlib import Path

import pytest
import yaml

from dogbreeds.evaluation.verdict import VERDICTS
from dogbreeds.experiments.compose import compose_config, config_source, from_config
from dogbreeds.experiments.recipe import Recipe
from tests.documentation import PAGES, ROOT, TEXTS, WRITTEN, blocks, command_lines, generated, typed_commands
from tests.test_conf import first_values
from tests.tiers import tiered

# Hydra warns of launchers that its plugins register under the same names.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra:UserWarning")
# Commands whose config is that of a run.
COMMANDS_OF_RUNS = ("train", "extract", "why")
COMMANDS = sorted({(name, *overrides) for path in WRITTEN for name, overrides in typed_commands(path)})


# The long tier runs the commands too: see test_documented_commands.
@pytest.mark.parametrize(
    ("command",),
    tiered([(command,) for command in COMMANDS], slow=[(command,) for command in COMMANDS[::4]]),
    ids=" ".join,
)
def test_command_in_the_documentation_composes(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    name, *overrides = command
    if "--help" in overrides:
        return
    # Parts of one's own have the names of the examples'.
    plugins = [ROOT / "examples/plugin/shapes_plugin", ROOT / "examples/efficientnet_lite"]
    for plugin in plugins:
        monkeypatch.syspath_prepend(plugin.parent)
    sources = [config_source(plugin / "conf") for plugin in plugins]
    config = compose_config(name, first_values(overrides), sources=sources)
    if name in COMMANDS_OF_RUNS:
        config.plugins = [plugin.name for plugin in plugins]
        # A recipe of several runs composes each of them when it starts.
        assert Recipe.of(config) or from_config(config).key


def test_documentation_has_commands_of_every_kind() -> None:
    assert len(COMMANDS) > 80
    assert {name for name, *_ in COMMANDS} == set(generated.COMMANDS)


def test_make_targets_and_scripts_in_the_documentation_exist() -> None:
    made = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for path in WRITTEN:
        named |= set(re.findall(r"`make ([a-z][a-z-]*)", TEXTS[path]))
        named |= {words[1] for words in command_lines(path) if words[0] == "make"}
        scripts = re.findall(r"tests/bench/\w+\.py|tests/\w+\.py|\.ci/run", TEXTS[path])
        assert all((ROOT / script).is_file() for script in scripts), path
    assert len(named) > 12
    assert named <= made


def test_python_in_the_documentation_compiles() -> None:
    found = [(path, block) for path in WRITTEN for block in blocks(TEXTS[path], "python")]
    for path, block in found:
        compile(block, str(path), "exec")
    assert len(found) >= 2


def test_files_of_the_project_that_the_documentation_names_exist() -> None:
    named = re.compile(r"`((?:conf|dogbreeds|docs|tests)/[\w/.-]+\.(?:py|yaml|md|cff))`")
    found = {file for path in WRITTEN if path.parent != ROOT for file in named.findall(TEXTS[path])}
    assert len(found) > 15
    assert [file for file in sorted(found) if not (ROOT / file).is_file()] == []


# --- guarantees ---------------------------------------------------------------

GUARANTEES = (PAGES / "concepts/guarantees.md").read_text()
ROWS = re.findall(r"^\| [^|]+ \| ((?:`\w+::\w+`(?:, )?)+) \|$", GUARANTEES, re.MULTILINE)
NAMED_TESTS = sorted({name for tests in ROWS for name in re.findall(r"`(\w+::\w+)`", tests)})


def test_every_guarantee_names_tests() -> None:
    lines = [line for line in GUARANTEES.splitlines() if line.startswith("|")]
    assert len(ROWS) == len(lines) - 2
    assert len(ROWS) >= 20


@pytest.mark.parametrize("name", NAMED_TESTS)
def test_test_of_a_guarantee_runs_with_every_change(name: str, collected_tests: dict[str, list[set[str]]]) -> None:
    file, function = name.split("::")
    if not any(found.startswith(f"{file}::") for found in collected_tests):
        pytest.skip("this run collects some files only")
    assert any(not {"long", "real"} & marks for marks in collected_tests.get(name, [])), (
        f"no tests/test_{file}.py::test_{function} outside the long tier"
    )


# --- messages -----------------------------------------------------------------


def _template(node: ast.expr) -> str:
    """Return a text expression with … in the place of values; empty for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def _messages(path: Path) -> list[str]:
    """Return the texts of a module."""
    return list(
        filter(None, (_template(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.expr)))
    )


def _begins(template: str, quoted: str) -> bool:
    """Whether a message may begin with a quoted beginning: each … in either stands for any text."""
    parts = [re.escape(part) for part in quoted.split("…")]
    return re.match(".*?".join(parts), template, re.DOTALL) is not None


MESSAGES = {
    path.relative_to(ROOT / "dogbreeds").as_posix(): _messages(path) for path in (ROOT / "dogbreeds").rglob("*.py")
}
QUOTED = [
    quoted
    for line in (PAGES / "reference/errors.md").read_text().splitlines()
    if line.startswith("| `")
    for quoted in re.findall(r"`([^`]+)`", line.split(" | ")[0])
]


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_message_is_one_of_the_package(quoted: str) -> None:
    assert len(quoted.replace("…", "").strip()) >= 12
    assert any(_begins(message, quoted) for messages in MESSAGES.values() for message in messages)


def test_every_module_with_errors_has_one_in_the_list_of_errors() -> None:
    raising = {
        module
        for module in MESSAGES
        # `error_message` formats the errors of Hydra, which are listed with those of `cli`.
        if re.search(
            r"raise (UserError|MissingFileError)\((?!error_message)", (ROOT / "dogbreeds" / module).read_text()
        )
    }
    listed = {
        module
        for module in raising
        if any(_begins(message, quoted) for message in MESSAGES[module] for quoted in QUOTED)
    }
    assert sorted(raising - listed) == []


def test_table_of_verdicts_has_every_verdict() -> None:
    page = (PAGES / "concepts/verdicts.md").read_text()
    table = page[page.index("| verdict | when |") : page.index("A verdict is computed")]
    assert set(re.findall(r"`(\w+)`", table)) == set(VERDICTS)


def test_citation_has_the_version_of_the_changelog() -> None:
    citation = yaml.safe_load((ROOT / "docs/CITATION.cff").read_text())
    assert f"\n## {citation['version']}\n" in (ROOT / "CHANGELOG.md").read_text()[:40]
