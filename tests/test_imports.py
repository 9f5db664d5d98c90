"""Which package may import which: arrows point down only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dogbreeds

ROOT = Path(dogbreeds.__file__).parent
# All may import core.
MAY_IMPORT = {
    "core": set(),
    "data": set(),
    "evaluation": set(),
    "models": {"data"},
    "features": {"data"},
    "tracking": {"evaluation"},
    "training": {"data", "evaluation", "models", "features"},
    "inference": {"data", "evaluation", "models", "features"},
    "reports": {"data", "evaluation", "tracking"},
    "experiments": {"data", "evaluation", "models", "features", "tracking", "training", "inference", "reports"},
}
# Beside packages: the door, which imports experiments and below, and commands, which import all.
DOOR = {"__init__", "api", "cli"}
COMMANDS = {"train", "extract", "evaluate", "compare", "predict", "export", "table", "why", "cache", "pretrain"}


def imported(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of each import of the package, wherever it stands: under TYPE_CHECKING and in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for name in node.names:
                if (node.module or "").split(".")[0] == "dogbreeds":
                    yield node.lineno, str(node.module), name.name
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "dogbreeds":
                    yield node.lineno, name.name, ""


def violations(package: str, source: str) -> list[str]:
    """The imports of a module that its package may not have; of a command and the door, '' and 'door' are the package."""
    allowed = {package, "core"} | MAY_IMPORT.get(package, set(MAY_IMPORT))
    found = []
    for line, module, name in imported(source):
        parts = module.split(".")[1:] or [name]
        if (
            parts[0] not in allowed
            and not (package == "" and parts[0] in DOOR)
            and not (package == "door" and parts[0] in DOOR)
        ):
            found.append(f"line {line}: {module} {name}".rstrip())
    return found


@pytest.mark.parametrize("module", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_its_package(module: Path) -> None:
    *packages, name = module.relative_to(ROOT).with_suffix("").parts
    package = packages[0] if packages else "door" if name in DOOR else ""
    assert violations(package, module.read_text()) == []


def test_beside_packages_there_are_only_commands_and_the_door() -> None:
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(MAY_IMPORT)
    assert {path.stem for path in ROOT.glob("*.py")} <= COMMANDS | DOOR


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("core", "from dogbreeds.data.image import decode"),
        ("data", "from dogbreeds.models import network"),
        ("evaluation", "if TYPE_CHECKING:\n    from dogbreeds.training.loop import fit"),
        ("models", "def build():\n    from dogbreeds.features.cache import Store"),
        ("features", "import dogbreeds.models.network"),
        ("tracking", "from dogbreeds import cli"),
        ("reports", "from dogbreeds.training.state import Progress"),
        ("inference", "from dogbreeds import evaluate"),
        ("experiments", "from dogbreeds import train"),
        ("door", "from dogbreeds import train"),
    ],
)
def test_an_upward_import_is_found(package: str, source: str) -> None:
    assert len(violations(package, source)) == 1


def test_imports_downward_are_none() -> None:
    assert (
        violations(
            "experiments", "from dogbreeds.core import paths\nfrom dogbreeds.training.loop import fit\nimport numpy"
        )
        == []
    )
    assert violations("", "from dogbreeds import cli\nfrom dogbreeds.experiments.run import Run") == []


def test_packages_have_an_order() -> None:
    below: dict[str, set[str]] = {}
    # Each is named after all that it may import
    for package, allowed in MAY_IMPORT.items():
        assert allowed <= below.keys()
        below[package] = allowed
