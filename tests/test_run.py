"""`Run`, and how configs become one: names, defaults, keys, and which classes and values are accepted."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder, home
from dogbreeds.data import folder, miniature, stanford_dogs
from dogbreeds.experiments.compose import build_spec
from dogbreeds.experiments.run import GROUPS
from dogbreeds.models import model, unfreeze
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.training import optimizer, phase


def test_run_fields_config_groups_and_modules_have_the_same_names() -> None:
    # Files in conf/attempt/ and conf/recipe/ override other groups, so they are no fields.
    groups = {folder.name for folder in config_folder().iterdir() if folder.is_dir()} - {"hydra", "attempt", "recipe"}
    assert groups == set(GROUPS)
    # `data` is a package; every other group is one module in one of the packages.
    modules = {group: list((home() / "dogbreeds").glob(f"*/{group}.py")) for group in groups - {"data"}}
    assert all(len(paths) == 1 for paths in modules.values())
    assert (home() / "dogbreeds/data").is_dir()


def test_default_run_is_the_miniature(composed) -> None:
    run = composed()
    assert isinstance(run.model, model.Miniature)
    assert isinstance(run.data, miniature.Miniature)
    assert (run.model.image_size, run.preprocessing.mode, run.optimizer.lr, run.phase.batch_size, run.seed) == (
        64,
        "raw",
        1e-3,
        32,
        0,
    )


@pytest.mark.parametrize(
    ("name", "size", "pixels", "finetune_lr"),
    [
        ("effnetb0", 224, "raw", 1e-5),
        ("effnetb4", 380, "raw", 1e-5),
        ("effnetb7", 600, "raw", 1e-5),
        ("effnetv2s", 384, "raw", 1e-5),
        ("resnet50", 224, "caffe", 1e-4),
        ("mobilenetv2", 224, "tf", 1e-5),
        ("convnext_tiny", 224, "raw", 1e-5),
    ],
)
def test_model_chooses_its_data_image_size_pixels_and_learning_rates(
    composed, name: str, size: int, pixels: str, finetune_lr: float
) -> None:
    run = composed(f"model={name}")
    assert isinstance(run.data, stanford_dogs.StanfordDogs)
    assert (run.model.image_size, run.preprocessing.mode, run.optimizer.lr, run.model.weights) == (
        size,
        pixels,
        1e-3,
        "imagenet",
    )
    finetune = composed(f"model={name}", "phase=finetune")
    assert finetune.optimizer.lr == finetune_lr
    assert finetune.phase.batch_size == 16
    assert isinstance(finetune.phase, phase.Finetune)
    assert isinstance(finetune.unfreeze, unfreeze.LastN)
    assert (finetune.unfreeze.layers, finetune.unfreeze.batchnorm) == (20, "frozen")


def test_command_line_overrides_what_a_model_chooses(composed, tmp_path: Path) -> None:
    run = composed(
        "model=effnetb0",
        "data=folder",
        f"data.root={tmp_path}",
        "phase=finetune",
        "unfreeze=all",
        "phase.batch_size=8",
        "optimizer=sgd",
        "optimizer.lr=3e-2",
        "model.image_size=128",
        "preprocessing=torch",
    )
    assert isinstance(run.data, folder.Folder)
    assert isinstance(run.unfreeze, unfreeze.All)
    assert isinstance(run.optimizer, optimizer.SGD)
    assert (run.phase.batch_size, run.optimizer.lr, run.model.image_size, run.preprocessing.mode) == (
        8,
        0.03,
        128,
        "torch",
    )


def test_key_depends_only_on_settings_that_change_the_result(composed) -> None:
    key = composed().key
    assert key == composed("tracking=none", "features.max_gigabytes=1").key == composed("preprocessing=raw").key
    changed = [
        composed(change).key
        for change in ("seed=1", "optimizer.lr=1e-2", "head=linear", "features.dtype=float16", "augment=guide")
    ]
    assert len({key, *changed}) == 6


def test_seed_must_not_be_negative(composed) -> None:
    assert composed("seed=0").seed == 0
    with pytest.raises(UserError, match=r"^seed was -1\. It must be a whole number from 0 to 4294967295\."):
        composed("seed=-1")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "dogbreeds.core.spec.Spec",
        "dogbreeds.cli.main",
        "builtins.eval",
        "dogbreeds_evil.Adam",
        "dogbreeds.optimizer.Nope",
        "dogbreeds.optimizer.Spec",
        "dogbreeds.training.optimizer.Adam.group",
        "dogbreeds.models.head.Linear",
    ],
)
def test_from_config_rejects_a_target_outside_the_group(composed, target: str) -> None:
    with pytest.raises(UserError, match=r"optimizer\._target_ was .* must be a class of dogbreeds\.optimizer"):
        composed(f"optimizer._target_={target}")


@pytest.mark.parametrize("key", ["+optimizer.foo=1", "+optimizer._args_=[1]", "+optimizer._partial_=true"])
def test_from_config_rejects_an_unknown_key(composed, key: str) -> None:
    with pytest.raises(UserError, match=r"is not a setting of Adam\. Its settings are beta_1, "):
        composed(key)


def test_tracking_uri_is_an_absolute_path_by_default(composed, tmp_path: Path) -> None:
    run = composed()
    assert isinstance(run.tracking, Mlflow)
    assert run.tracking.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


# --- configs with calls -------------------------------------------------------

MLP = {"_target_": "dogbreeds.models.head.MLP", "widths": [8], "dropout": 0.1}
FOLDER = {"_target_": "dogbreeds.data.folder.Folder"}


def touch(path: Path) -> dict[str, object]:
    """Return a config with which Hydra's `instantiate` would create a file."""
    return {"_target_": "os.system", "_args_": [f"touch '{path}'"]}


REJECTED_GROUPS = {
    "of another module": ("head", lambda path: touch(path)),
    "imported by the module": ("data", lambda path: touch(path) | {"_target_": "dogbreeds.data.os.system"}),
    "imported by name": ("data", lambda path: {"_target_": "dogbreeds.data.Path", "_args_": [str(path)]}),
    "a class that is no spec": ("data", lambda path: {"_target_": "dogbreeds.data.dataset.Source", "name": "x"}),
    "a function": ("data", lambda path: {"_target_": "dogbreeds.data.dataset.stratified_split"}),
    "a constant": ("data", lambda path: {"_target_": "dogbreeds.data.OUTSIDE"}),
    "a spec of another module": ("data", lambda path: {"_target_": "dogbreeds.data.Spec"}),
    "another group's": ("head", lambda path: FOLDER),
    "a method": ("data", lambda path: {"_target_": "dogbreeds.data.folder.Folder.open"}),
    "unknown": ("head", lambda path: {"_target_": "dogbreeds.head.Nope"}),
    "with two dots": ("head", lambda path: {"_target_": "dogbreeds.head..MLP"}),
    "of a missing module": ("head", lambda path: {"_target_": "dogbreeds.nope.Nope"}),
    "a number": ("head", lambda path: {"_target_": 7}),
    "a class in a class": ("head", lambda path: {"_target_": touch(path)}),
    "a string instead of a group": ("head", lambda path: "dogbreeds.models.head.MLP"),
    "a list instead of a group": ("head", lambda path: [touch(path)]),
    "null instead of a group": ("head", lambda path: None),
}


@pytest.mark.parametrize("case", REJECTED_GROUPS)
def test_build_spec_builds_only_classes_of_the_group(tmp_path: Path, case: str) -> None:
    name, group = REJECTED_GROUPS[case]
    with pytest.raises(UserError) as error:
        build_spec(OmegaConf.create({name: group(tmp_path / "made")}), name)
    message = (
        rf"{name}\._target_ was .*\. It must be a class of dogbreeds\.{name}, .* conf/{name}/\. Type {name}=<option>; "
    )
    assert re.match(message, str(error.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["_target_", "_args_", "_partial_", "_convert_", "_recursive_"])
@pytest.mark.parametrize(
    "nest", [lambda call: call, lambda call: [8, call], lambda call: {"a": {"b": call}}, lambda call: [[{"a": [call]}]]]
)
def test_build_spec_rejects_calls_at_any_depth_of_a_setting(
    tmp_path: Path, key: str, nest: Callable[[object], object]
) -> None:
    call = touch(tmp_path / "made") if key == "_target_" else {key: True}
    with pytest.raises(
        UserError,
        match=(
            rf"^head\.widths.* has a key {key} \(.*\)\. .* settings are plain values\. Type head\.widths.*=<value>\."
        ),
    ):
        build_spec(OmegaConf.create({"head": MLP | {"widths": nest(call)}}), "head")
    assert list(tmp_path.iterdir()) == []


def test_build_spec_does_not_resolve_an_interpolation_to_a_call(tmp_path: Path) -> None:
    interpolated = {"head": MLP | {"widths": "${call}"}, "call": touch(tmp_path / "made")}
    with pytest.raises(UserError, match=r"^head\.widths has a key _target_ "):
        build_spec(OmegaConf.create(interpolated), "head")
    with pytest.raises(UserError, match=r"^head\.widths was "):
        build_spec(OmegaConf.create({"head": MLP | {"widths": "\\${call}"}, "call": touch(tmp_path / "made")}), "head")
    assert list(tmp_path.iterdir()) == []


def test_build_spec_names_a_missing_setting() -> None:
    message = r"^head\.widths was not given\. MLP needs all of dropout, widths\. Type head=<option>, "
    with pytest.raises(UserError, match=message):
        build_spec(OmegaConf.create({"head": {key: value for key, value in MLP.items() if key != "widths"}}), "head")
    assert build_spec(OmegaConf.create({"head": MLP}), "head").widths == (8,)
