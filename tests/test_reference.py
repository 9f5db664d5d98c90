"""The documentation's reference: generated pages have what `conf/` has, and MLflow names are those of real runs."""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.run import Run
from dogbreeds.tracking.records import RunOrigin

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import config_files  # noqa: E402 - of the folder above
import generated  # noqa: E402
from markdown_text import code, prose  # noqa: E402
from spec_classes import spec_fields  # noqa: E402

CONF = ROOT / "conf"
PAGES = ROOT / "docs/pages"
FILES = sorted(
    path for path in CONF.rglob("*.yaml") if path.parent.name not in ("help", "hydra_logging", "job_logging")
)


def plain_settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a config by dotted name, without targets."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        name: value
        for key, nested in config.items()
        if key != "_target_"
        for name, value in plain_settings(nested, f"{prefix}.{key}" if prefix else key).items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_read_config_finds_the_settings_and_defaults_that_yaml_has(path: Path) -> None:
    loaded = yaml.safe_load(path.read_text())
    expected = plain_settings({key: value for key, value in loaded.items() if key not in ("defaults", "hydra")})
    file = config_files.read_config(path)
    assert {setting.key: yaml.safe_load(setting.default) for setting in file.settings} == (
        expected if expected != {"": {}} else {}
    )
    assert len(file.choices) == len([item for item in loaded.get("defaults", []) if item != "_self_"])
    assert file.commands


def test_read_config_reads_comments_above_and_beside_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(
        "# What it is. More.\n# Measured: 3 %.\n# Run: python -m dogbreeds.train \\\n#   seed=1\n"
        "# above\n_target_: a.B\n# over\nlr: 0.1  # beside\nnested:  # of both\n  first: [1, 2]\n  second: 'a # b'\n"
    )
    file = config_files.read_config(path)
    assert file.summary == "What it is."
    assert file.paragraphs == ("What it is. More.", "Measured: 3 %.", "above")
    assert file.commands == ("python -m dogbreeds.train seed=1",)
    assert [(each.key, each.default, each.comment) for each in file.settings] == [
        ("lr", "0.1", "over beside"),
        ("nested.first", "[1, 2]", "of both;"),
        ("nested.second", "'a # b'", ""),
    ]


def test_read_config_rejects_a_line_that_it_does_not_understand(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("# What it is.\n- item\n")
    with pytest.raises(ValueError, match="'- item' is no setting"):
        config_files.read_config(path)


@pytest.mark.parametrize("group", generated.groups())
def test_group_page_has_each_option_with_its_command_and_settings(group: str) -> None:
    text = generated.group_page(group)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    files = {path.stem: config_files.read_config(path) for path in (CONF / group).glob("*.yaml")}
    assert {section.split("`")[1] for section in sections} == set(files)
    for section in sections:
        file = files[section.split("`")[1]]
        assert all(command in section for command in file.commands)
        assert len(re.findall(r"^\| `", section, re.MULTILINE)) == len(file.settings)
        assert all(code(setting.default) in section for setting in file.settings)


def test_group_page_names_allowed_values_and_the_meaning_of_a_setting() -> None:
    page = generated.group_page("optimizer")
    assert "| `optimizer.layer_decay` | `1.0` | (0,\N{NO-BREAK SPACE}1\\] | factor of the learning rate" in page
    assert "Default: `adam`." in page
    assert "Default: `stanford_dogs`. With the default `model=miniature` it is `miniature`." in generated.group_page(
        "data"
    )
    assert page.index("## `adam`") < page.index("## `sgd`")
    assert "[`dogbreeds.training.optimizer.Adam`][dogbreeds.training.optimizer.Adam]" in page


@pytest.mark.parametrize(
    ("target", "field", "allowed"),
    [
        ("dogbreeds.data.folder.Folder", "resize", "stretch, pad, crop"),
        ("dogbreeds.training.phase.Finetune", "patience_epochs", "integer ≥\N{NO-BREAK SPACE}1, or null"),
        ("dogbreeds.models.head.MLP", "dropout", "[0,\N{NO-BREAK SPACE}1)"),
        ("dogbreeds.models.preprocessing.Preprocessing", "mode", "raw, torch, caffe, tf, unit, auto"),
        ("dogbreeds.tracking.mlflow_backend.Mlflow", "uri", "text"),
        ("dogbreeds.experiments.run.Ungrouped", "seed", "integer [0,\N{NO-BREAK SPACE}4294967295]"),
        ("dogbreeds.data.folder.Folder", "root", "path, or null"),
    ],
)
def test_spec_fields_reads_what_a_field_allows_also_of_base_classes(target: str, field: str, allowed: str) -> None:
    assert spec_fields(target)[field].allowed == allowed
    assert spec_fields(target)[field].meaning or target.endswith("MLP")


def test_sections_of_commands_have_the_settings_of_their_configs() -> None:
    text = generated.command_sections()
    sections = dict(zip(generated.COMMANDS, re.split(r"^## ", text, flags=re.MULTILINE)[1:], strict=True))
    for name, section in sections.items():
        file = config_files.read_config(CONF / f"{name}.yaml")
        assert section.startswith(f"`{name}` ")
        assert all(f"| {code(setting.key)} |" in section for setting in file.settings)
    assert "# With test-time augmentation\npython -m dogbreeds.evaluate run=3f2a9c41" in sections["evaluate"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "head=mlp or <class>/*; see conf/model/ and data.root",
            "`head=mlp` or &lt;class&gt;/\\*; see `conf/model/` and `data.root`",
        ),
        (
            """a list 'images=[a.jpg,b.jpg]', spaces "images='my dog.jpg'".""",
            """a list `'images=[a.jpg,b.jpg]'`, spaces `"images='my dog.jpg'"`.""",
        ),
        (
            "such as [optimizer.lr=1e-3,head=linear]: pip install 'dogbreeds[ray]'.",
            "such as `[optimizer.lr=1e-3,head=linear]`: `pip install 'dogbreeds[ray]'`.",
        ),
    ],
)
def test_prose_escapes_markup_and_sets_what_is_typed_as_code(text: str, expected: str) -> None:
    assert prose(text) == expected


def test_navigation_lists_every_page_once() -> None:
    config = yaml.safe_load((ROOT / "docs/mkdocs.yml").read_text())

    def listed(item: Any) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [page for nested in (item.values() if isinstance(item, dict) else item) for page in listed(nested)]

    pages = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")} | set(generated.pages())
    assert sorted(listed(config["nav"])) == sorted(pages)


def test_site_shows_every_picture_with_a_description() -> None:
    shown = [
        picture
        for path in PAGES.rglob("*.md")
        for picture in re.findall(r"<!-- picture: (\S+) \| (.+) -->", path.read_text())
    ]
    assert {f"pictures/{name}" for name, _ in shown} == set(generated.pictures())
    assert min(len(description.split()) for _, description in shown) >= 5


# --- MLflow -------------------------------------------------------------------


def documented(section: str) -> list[re.Pattern[str]]:
    """Return patterns of the names in a section of the page of MLflow names."""
    page = (PAGES / "reference/mlflow.md").read_text()
    lines = page.partition(f"## {section}\n")[2].partition("\n## ")[0].splitlines()
    names = [name for line in lines if line.startswith("| ") for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
    return [re.compile(re.sub(r"<[a-z\\ ]+>", r"[\\w.-]+", re.escape(name))) for name in names]


def undocumented(section: str, names: set[str]) -> list[str]:
    """Return the names that a section of the page has no pattern for."""
    patterns = documented(section)
    return [name for name in sorted(names) if not any(pattern.fullmatch(name) for pattern in patterns)]


@pytest.fixture
def recorded(composed: Callable[..., Run], tmp_path: Path) -> "list[mlflow.entities.Run]":
    """A frozen run, a fine-tune of it and a range test, as MLflow has them."""
    small = ("data.classes=6", "tracking.system_metrics_seconds=0.2")
    options = (["phase.epochs=2"], ["phase=finetune", "phase.epochs=2"], ["phase=lr_range", "phase.steps=20"])
    runs = [composed(*small, *overrides) for overrides in options]
    origin = RunOrigin("seed: 0\n", ("data.classes=6",), "a run", tmp_path, {"model": "miniature", "data": "miniature"})
    for run in runs:
        execute(run, origin)
    client, experiment = runs[0].tracking.connect()
    return list(client.search_runs([experiment]))


@pytest.mark.slow
def test_recorded_names_are_documented(recorded: "list[mlflow.entities.Run]", tmp_path: Path) -> None:
    params = {name for run in recorded for name in run.data.params}
    metrics = {name for run in recorded for name in run.data.metrics}
    tags = {name for run in recorded for name in run.data.tags if not name.startswith("mlflow.")}
    assert undocumented("Parameters", params) == []
    assert undocumented("Metrics", metrics) == []
    assert undocumented("Tags", tags) == []
    files = {path.as_posix() for path in (tmp_path / "mlruns/artifacts").rglob("*") if path.is_file()}
    artifacts = {file.split("/artifacts/")[-1] for file in files}
    assert undocumented("Artifacts", artifacts) == []
    # The runs recorded something of each kind.
    assert {"optimizer.lr", "unfreeze.plan"} <= params
    assert {"best/val_accuracy", "parent/test_p_value", "preflight/torch", "verdict/p_value"} <= metrics
    assert {"verdict.reason", "choice.model", "version.keras", "parent"} <= tags
    assert {"curves.png", "head/head.weights.h5", "model/model.keras", "predictions/test.npz"} <= artifacts


def test_documented_metrics_and_tags_are_in_the_code() -> None:
    texts = {
        node.value
        for path in (ROOT / "dogbreeds").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # The code joins some names from parts: `best/` and a metric's name in which / is _.
    words = {word for text in texts for word in re.findall(r"[a-zA-Z0-9_.]+", text.replace("/", "_"))}
    words |= {word for text in texts for word in re.findall(r"[a-zA-Z0-9_]+", text)}
    for section in ("Metrics", "Tags"):
        for pattern in documented(section):
            name = re.sub(r"\[[^\]]*\]\+", "", pattern.pattern.replace("\\", ""))
            parts = [
                part for part in re.split(r"[/.]", name.replace("_low", "").replace("_high", "")) if part.strip("_")
            ]
            assert [part for part in parts if part.strip("_") not in words] == [], name
