"""Plugins: which classes from outside the package are built, and that their source enters keys and cached arrays."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, SearchPathException
from omegaconf import OmegaConf

import dogbreeds
from dogbreeds.cli import error_message
from dogbreeds.core.source import source_digest
from dogbreeds.core.spec import Spec
from dogbreeds.data.augment import Guide, Plain
from dogbreeds.data.folder import Folder
from dogbreeds.experiments import plugins
from dogbreeds.experiments.compose import build_spec, compose_config, compose_run, job_config
from dogbreeds.experiments.prepare import _check_saved_layers
from dogbreeds.experiments.recorded_runs import open_dataset
from dogbreeds.experiments.run import Run
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import AugmentedView, DecodedImages
from dogbreeds.models.custom_layers import custom_layers
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.tracking.records import SOURCE_SUFFIX, differing, param_text
from dogbreeds.training.phase import LrRange

PARTS = """
from dataclasses import dataclass

import dogbreeds


@dataclass(frozen=True, kw_only=True)
class NormHead(dogbreeds.Head):
    dropout: float = dogbreeds.number(at_least=0, below=1, example=0.2)


@dataclass(frozen=True, kw_only=True)
class Noise(dogbreeds.Augment):
    copies: int = dogbreeds.integer(at_least=1, example=2)
    source: float = dogbreeds.number(at_least=0, example=1)


@dataclass(frozen=True, kw_only=True)
class Grey(dogbreeds.Preprocessing):
    pass


@dataclass(frozen=True, kw_only=True)
class Drawn(dogbreeds.Data):
    pass


@dataclass(frozen=True, kw_only=True)
class Unchecked(dogbreeds.Head):
    dropout: float = 0.2


class NoSpec:
    group = "head"
"""
CONFIGS = {
    "head/norm": "_target_: mydogs.parts.NormHead\ndropout: 0.2\n",
    "attempt/mine": "# @package _global_\ndefaults:\n  - override /head: norm\n",
}
SOURCE = f"head{SOURCE_SUFFIX}"
DATA = {"resize": "stretch", "decoder": "tensorflow", "on_corrupt": "stop", "max_corrupt_fraction": 0.01}
ERRORS = {
    "missing": "import kears\n",
    "syntax": "x = 1\n\ndef f(:\n",
    "name": "import dogbreeds\n\nBASE = dogbreeds.Hed\n",
}


@pytest.fixture
def write_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """A function that writes the package `mydogs`, puts it on Python's path, and makes Python forget an earlier one."""

    def write(folder: str = "place", **modules: str) -> Path:
        package = tmp_path / folder / "mydogs"
        for name, content in CONFIGS.items():
            path = package / f"conf/{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        for name, content in ({"__init__": "", "parts": PARTS} | modules).items():
            (package / f"{name}.py").write_text(content)
        monkeypatch.syspath_prepend(package.parent)
        _forget()
        return package

    yield write
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mydogs"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def parts(write_plugin: Callable[..., Path]) -> ModuleType:
    write_plugin()
    return importlib.import_module("mydogs.parts")


def head(target: str = "mydogs.parts.NormHead", named: tuple[str, ...] = ("mydogs",)) -> Spec:
    return build_spec(OmegaConf.create({"head": {"_target_": target, "dropout": 0.3}}), "head", named)


# --- which classes are built --------------------------------------------------


@pytest.mark.parametrize("named", [("mydogs",), ("mydogs.parts",), ("other", "mydogs")])
def test_a_class_of_a_named_plugin_is_built(write_plugin, named: tuple[str, ...]) -> None:
    write_plugin()
    built = head(named=named)
    assert isinstance(built, dogbreeds.Head)
    assert (type(built).__module__, built.dropout) == ("mydogs.parts", 0.3)
    with pytest.raises(dogbreeds.UserError, match=r"head\.dropout was 2"):
        type(built)(dropout=2)


@pytest.mark.parametrize("named", [(), ("mydog",), ("mydogs.part",), ("parts",), ("mydogs.parts.NormHead",)])
def test_a_module_that_is_no_plugin_is_not_imported(write_plugin, named: tuple[str, ...]) -> None:
    write_plugin()
    with pytest.raises(dogbreeds.UserError, match=r"'mydogs\.parts\.NormHead'.*'plugins=\[mydogs\]'"):
        head(named=named)
    assert "mydogs" not in sys.modules


@pytest.mark.parametrize(
    ("target", "module"),
    [("theirdogs.parts.Head", "theirdogs"), (None, "mydogs"), ("os.system", "mydogs"), ("a b.Head", "mydogs")],
)
def test_hint_names_a_module_that_may_be_a_plugin(target: str | None, module: str) -> None:
    assert plugins.plugin_hint(target) == f"'plugins=[{module}]' allows the classes of the module {module}"


@pytest.mark.parametrize(
    ("target", "typed"),
    [
        ("mydogs.parts.NoSpec", "no subclass of Head"),
        ("mydogs.parts.Grey", "no subclass of Head"),
        ("mydogs.parts.Nope", "no class"),
        ("mydogs.parts.Unchecked", r"dropout: float = dogbreeds\.number\("),
        ("mydogs.prats.NormHead", r"PYTHONPATH=<folder with mydogs>"),
    ],
)
def test_a_class_that_is_no_spec_of_the_group_is_refused(parts: ModuleType, target: str, typed: str) -> None:
    with pytest.raises(dogbreeds.UserError, match=rf"^head\._target_ was {target}.*{typed}"):
        head(target)


def test_a_plugin_that_is_not_importable_is_named_with_where_python_looked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(dogbreeds.UserError) as error:
        plugins.import_plugins(["mydgos.parts"])
    for fact in ("plugins has mydgos.parts", "no module mydgos.", str(tmp_path), "PYTHONPATH=<folder with mydgos>"):
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("source", "raised"),
    [
        ("missing", "line 1, raises ModuleNotFoundError"),
        ("syntax", "line 3, raises SyntaxError"),
        ("name", "line 3, raises"),
    ],
)
def test_an_error_in_the_source_of_a_plugin_is_told_with_its_line(write_plugin, source: str, raised: str) -> None:
    package = write_plugin(parts=ERRORS[source])
    with pytest.raises(dogbreeds.UserError) as error:
        plugins.import_plugins(["mydogs.parts"])
    assert f"{package}/parts.py, {raised}" in str(error.value)
    assert "python -c 'import mydogs.parts'" in str(error.value)


@pytest.mark.parametrize("name", ["../mydogs", "mydogs.py/", "my-dogs", ""])
def test_plugins_are_named_as_python_imports_them(name: str) -> None:
    with pytest.raises(dogbreeds.UserError, match=r"'?plugins=\["):
        plugins.named_plugins(OmegaConf.create({"plugins": [name]}))


def test_a_recorded_config_does_not_decide_which_plugins_are_imported(write_plugin) -> None:
    write_plugin()
    recorded = {"plugins": ["mydogs"], "data": {"_target_": "mydogs.parts.Drawn", **DATA}}
    tracking = SimpleNamespace(config=lambda run_id: recorded)
    record = SimpleNamespace(run_id="0123456789abcdef")
    with pytest.raises(dogbreeds.UserError, match=r"^Run 0123\w+ .* mydogs\.parts\.Drawn, .*'plugins=\[mydogs\]'"):
        open_dataset(tracking, record, None)
    assert "mydogs" not in sys.modules
    # With the plugin, its own `open` is called.
    with pytest.raises(NotImplementedError):
        open_dataset(tracking, record, None, plugins=["mydogs"])


# --- where configs come from --------------------------------------------------


def test_compose_takes_a_config_folder_and_plugins_and_fit_composes_the_same_again(write_plugin) -> None:
    package = write_plugin()
    run = dogbreeds.compose(["attempt=mine", "head.dropout=0.5"], config_dir=package / "conf", plugins=["mydogs"])
    assert type(run.head).__module__ == "mydogs.parts"
    assert run.origin is not None
    assert run.origin.changed == ("head.dropout=0.5",)
    assert compose_run(run.origin.overrides, run.origin.sources) == run


def test_what_a_command_composes_again_has_its_config_folder(write_plugin, monkeypatch) -> None:
    package = write_plugin()
    sources = [f"file://{package}/conf"]
    monkeypatch.setattr(HydraConfig.instance(), "cfg", compose_config("train", with_hydra=True, sources=sources))
    assert compose_config("why", ["head=norm"]).head._target_ == "mydogs.parts.NormHead"


def test_an_entry_point_needs_neither_flag(write_plugin, monkeypatch) -> None:
    package = write_plugin()
    entry_points = package.parent / "mydogs-1.dist-info/entry_points.txt"
    assert plugins.sources_digest([]) == ""
    entry_points.parent.mkdir()
    entry_points.write_text("[dogbreeds.plugins]\nany = mydogs\n")
    plugins.installed_plugins.cache_clear()
    try:
        run = dogbreeds.compose(["head=norm"])
        digest = plugins.sources_digest([])
    finally:
        plugins.installed_plugins.cache_clear()
    assert type(run.head).__module__ == "mydogs.parts"
    assert digest == plugins.sources_digest(["mydogs"])


def test_a_mistyped_setting_of_a_plugin_s_option_is_answered_with_its_settings(write_plugin) -> None:
    sources = [f"file://{write_plugin()}/conf"]
    error = ConfigCompositionException("Could not override 'head.dropuot'.")
    answered = r"Similar settings are head\.dropout\. Type head\.dropout="
    assert re.search(answered, error_message(error, "train", ["head=norm", "head.dropuot=1"], sources))
    # What cannot be composed either does not stand in the way.
    assert "head.widths" in error_message(error, "train", ["head=nope", "head.dropuot=1"], sources)


def test_plugins_in_python_are_a_list() -> None:
    with pytest.raises(dogbreeds.UserError, match=r"plugins was 'mydogs'\. .*'plugins=\[mydogs\]'"):
        dogbreeds.compose(plugins="mydogs")


def test_a_missing_config_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(dogbreeds.MissingFileError, match=rf"{tmp_path}/nope does not exist.*--config-dir <folder>"):
        dogbreeds.compose(config_dir=tmp_path / "nope")


def test_a_config_without_plugins_is_that_of_versions_without_them() -> None:
    config = compose_config("train")
    assert "plugins" in config
    assert "plugins" not in job_config(config)
    assert job_config(OmegaConf.merge(config, {"plugins": ["mydogs"]})).plugins == ["mydogs"]


@pytest.mark.slow
def test_parts_in_the_documentation_work_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs/pages/guides/parts-of-your-own.md").read_text()
    head_source, backbone_source, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(head_source.splitlines()) <= 15
    assert len(backbone_source.splitlines()) <= 30
    files = {"parts.py": head_source + backbone_source}
    configs = re.findall(r"`mydogs/(conf/\S+)`:\n\n```yaml\n(.*?)```", page, re.DOTALL)
    for name, content in (files | dict(configs)).items():
        path = tmp_path / "mydogs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    run = dogbreeds.compose(["head=norm", "model=tinynet"], config_dir="mydogs/conf", plugins=["mydogs"])
    _forget()
    assert [block.name for block in run.model.build(0).blocks] == ["stem", "block1", "block2", "block3"]
    assert [type(layer).__name__ for layer in run.head.build(8, 3, 0).layers] == [
        "LayerNormalization",
        "Dropout",
        "Dense",
    ]


@pytest.mark.long
def test_a_network_of_another_package_trains_as_the_documentation_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs/pages/guides/parts-of-your-own.md").read_text()
    (source,) = re.findall(r"`mydogs/darknet\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert len(source.splitlines()) <= 30
    (config,) = re.findall(r"`mydogs/conf/model/darknet53\.yaml`:\n\n```yaml\n(.*?)```", page, re.DOTALL)
    folder = tmp_path / "mydogs/conf/model"
    folder.mkdir(parents=True)
    (folder / "darknet53.yaml").write_text(config)
    (tmp_path / "mydogs/darknet.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    small = ["data=miniature", "data.classes=2", "data.train_per_class=4", "data.val_per_class=2", "phase.epochs=1"]
    more = ["model.image_size=64", "baseline=none", "preflight=none", "augment=none"]
    run = dogbreeds.compose(["model=darknet53", *small, *more], config_dir="mydogs/conf", plugins=["mydogs"])
    blocks = [block.name for block in run.model.build(0).blocks]
    assert blocks[0] == "stem" and blocks[-1].startswith("stage_4_block") and len(blocks) > 20
    assert dogbreeds.fit(run).history.best is not None
    _forget()


# --- source -------------------------------------------------------------------


def test_source_of_a_plugin_enters_the_key_of_a_run(write_plugin, composed: Callable[..., Run]) -> None:
    run = composed()
    assert not any(".class." in name for name in run.parameters())
    keys = []
    for folder, modules in (("a", {}), ("b", {}), ("c", {"parts": PARTS + "# edited\n"}), ("d", {"other": "# new\n"})):
        write_plugin(folder, **modules)
        with_head = dataclasses.replace(run, head=head())
        assert with_head.parameters()["head.class.source"].startswith("mydogs.parts@")
        keys.append(with_head.key)
    # The same source at another place is the same; an edit of any module of the package is another.
    assert keys[0] == keys[1]
    assert len({run.key, *keys}) == 4


def test_source_is_that_which_was_imported(write_plugin) -> None:
    package = write_plugin()
    cls = type(head())
    before = source_digest(cls)
    (package / "parts.py").write_text("# edited while the process runs")
    assert source_digest(cls) == before


def test_a_class_without_a_source_file_is_refused() -> None:
    cls = type("Typed", (dogbreeds.Head,), {"__module__": "__main__"})
    with pytest.raises(dogbreeds.UserError, match=r"^__main__ has no source file.*plugins=\[parts\]"):
        source_digest(cls)


def test_source_of_a_plugin_enters_what_caches_are_named_by(parts: ModuleType) -> None:
    source = SimpleNamespace(fingerprint="f", ids=())
    cache = FeatureCache(Path("unused"), 1)

    def images(data: dogbreeds.Data) -> dict:
        return DecodedImages(source, data, 64, cache).identity

    def copy(augment: dogbreeds.Augment) -> dict:
        return AugmentedView(augment, 0, 0, np.arange(2)).identity

    folder = Folder(root="x", val_fraction=0.2, split_seed=0, **DATA)
    assert images(folder) == {"photos": "f", "size": 64, "resize": "stretch"}
    assert images(parts.Drawn(**DATA)) == images(folder) | {"source": source_digest(parts.Drawn)}
    assert copy(Plain()).keys() == {"augment", "number", "seed", "rows"}
    assert copy(Plain())["augment"] == {}
    noisy = copy(parts.Noise(copies=2, source=1))
    # The settings of a subclass count without further code, except for the number of copies.
    assert noisy["augment"] == {"source": 1.0}
    assert noisy["source"] == source_digest(parts.Noise)
    assert Preprocessing(mode="torch").fingerprint == "torch"
    assert parts.Grey(mode="torch").fingerprint.startswith("torch:")
    assert parts.Grey(mode="torch").fingerprint != parts.Grey(mode="raw").fingerprint.replace("raw", "torch")


def test_identity_of_the_guide_s_copies_is_that_of_earlier_versions() -> None:
    settings = {"rotation_degrees": 20.0, "horizontal_flip": True, "shear_radians": 0.15, "shift_fraction": 0.2}
    settings |= {"zoom_fraction": 0.2, "brightness_fraction": 0.2, "contrast_fraction": 0.2}
    assert Guide(copies=4, **settings).identity == settings


def test_a_parent_has_the_same_source_of_its_head() -> None:
    own, edited = {}, {SOURCE: "mydogs.parts@1"}
    assert differing(own, {SOURCE: param_text(None)}) == []
    assert differing(edited, {SOURCE: "mydogs.parts@1"}) == []
    for params, expected in ((own, "mydogs.parts@1"), (edited, "mydogs.parts@2"), (edited, param_text(None))):
        assert differing(params, {SOURCE: expected}) == [SOURCE]


# --- layers -------------------------------------------------------------------


@pytest.mark.slow
def test_layers_that_keras_cannot_load_by_itself_are_found() -> None:
    import keras

    class Own(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    @keras.saving.register_keras_serializable("mydogs")
    def doubled(inputs):
        return 2 * inputs

    layers = keras.layers
    bad = [
        Own(name="own"),
        layers.Dense(2, activation=doubled, name="function"),
        layers.Lambda(doubled, name="anonymous"),
        keras.Sequential([layers.Dense(2), Own(name="within")], name="nested"),
    ]
    good = [layers.Dense(2, activation="gelu"), layers.BatchNormalization(), layers.Dropout(0.1)]
    model = keras.Sequential([keras.Input((2,)), *good, *bad])
    assert sorted(set(custom_layers(model))) == ["anonymous", "function", "own", "within"]


def test_custom_layers_are_refused_only_where_the_network_would_be_saved(parts: ModuleType, composed) -> None:
    run = dataclasses.replace(composed(), head=parts.NormHead(dropout=0.1))
    network = SimpleNamespace(custom_layers=lambda: ["own"])
    with pytest.raises(dogbreeds.UserError, match=r"the layer own, .* tracking\.model=none"):
        _check_saved_layers(run, network)
    _check_saved_layers(dataclasses.replace(run, tracking=dataclasses.replace(run.tracking, model="none")), network)
    lr_range = LrRange(batch_size=32, steps=20, min_lr=1e-6, max_lr=1)
    _check_saved_layers(dataclasses.replace(run, phase=lr_range), network)


def test_error_message_of_a_missing_config_folder_is_the_same_on_the_command_line() -> None:
    message = error_message(SearchPathException("Additional config directory '/nope' not found"), "train")
    assert message.startswith("The config folder /nope does not exist.")
