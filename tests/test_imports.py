"""Package imports: each package imports only the packages below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dogbreeds

ROOT = Path(dogbreeds.__file__).parent
# The packages that each package may import, besides itself and core.
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
# Modules outside packages: the public API, which may import experiments and below, and commands, which may import all.
PUBLIC_API = {"__init__", "__main__", "api", "api_images", "api_sweeps", "cli"}
COMMANDS = {
    "train", "extract", "evaluate", "compare", "predict", "export", "table", "why", "probe", "judge", "cache",
    "pretrain", "ui", "soup", "audit",
}  # fmt: skip


def package_imports(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, module and name of every import from the package, also within functions and under TYPE_CHECKING."""
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
    """Return the imports of a module that its package may not have.

    Args:
        package: name of the package; empty for a command, and `public` for the public API.
        source: source of the module.
    """
    allowed = {package, "core"} | MAY_IMPORT.get(package, set(MAY_IMPORT))
    found = []
    for line, module, name in package_imports(source):
        parts = module.split(".")[1:] or [name]
        if (
            parts[0] not in allowed
            and not (package == "" and parts[0] in PUBLIC_API)
            and not (package == "public" and parts[0] in PUBLIC_API)
        ):
            found.append(f"line {line}: {module} {name}".rstrip())
    return found


@pytest.mark.parametrize("module", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_packages_below_its_own(module: Path) -> None:
    *packages, name = module.relative_to(ROOT).with_suffix("").parts
    package = packages[0] if packages else "public" if name in PUBLIC_API else ""
    assert violations(package, module.read_text()) == []


def test_modules_outside_packages_are_commands_or_the_public_api() -> None:
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(MAY_IMPORT)
    assert {path.stem for path in ROOT.glob("*.py")} <= COMMANDS | PUBLIC_API


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("core", "from dogbreeds.data.image import decode"),
        ("data", "from dogbreeds.models import network"),
        ("evaluation", "if TYPE_CHECKING:\n    from dogbreeds.training.loop import fit"),
        ("models", "def build():\n    from dogbreeds.features.cache import FeatureCache"),
        ("features", "import dogbreeds.models.network"),
        ("tracking", "from dogbreeds import cli"),
        ("reports", "from dogbreeds.training.state import TrainingState"),
        ("inference", "from dogbreeds import evaluate"),
        ("experiments", "from dogbreeds import train"),
        ("public", "from dogbreeds import train"),
    ],
)
def test_violations_finds_an_upward_import(package: str, source: str) -> None:
    assert len(violations(package, source)) == 1


def test_violations_accepts_downward_imports() -> None:
    assert (
        violations(
            "experiments", "from dogbreeds.core import paths\nfrom dogbreeds.training.loop import fit\nimport numpy"
        )
        == []
    )
    assert violations("", "from dogbreeds import cli\nfrom dogbreeds.experiments.run import Run") == []


def test_packages_have_a_topological_order() -> None:
    below: dict[str, set[str]] = {}
    # The table lists each package after all that it may import.
    for package, allowed in MAY_IMPORT.items():
        assert allowed <= below.keys()
        below[package] = allowed
