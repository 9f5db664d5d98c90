import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.data import folder, miniature, stanford_dogs
from dogbreeds.experiments.compose import part
from dogbreeds.experiments.run import ALONE, Run
from dogbreeds.models import model, unfreeze
from dogbreeds.tracking import tracking
from dogbreeds.training import optimizer, phase

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in (home() / "conf").glob("*/*.yaml")
    if path.parent.name not in ("hydra", "attempt")
)


def test_fields_groups_and_modules_have_the_same_names() -> None:
    # An attempt is a diff of the others
    groups = {folder.name for folder in (home() / "conf").iterdir() if folder.is_dir()} - {"hydra", "attempt"}
    assert groups == {field.name for field in dataclasses.fields(Run)} - set(ALONE)
    assert all((home() / f"dogbreeds/{group}.py").is_file() for group in groups)


def test_with_nothing_named_it_is_the_miniature(composed) -> None:
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
def test_a_model_brings_its_data_size_pixels_and_rates(
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


def test_the_command_line_wins_over_what_is_brought(composed, tmp_path: Path) -> None:
    run = composed(
        "model=effnetb0", "data=folder", f"data.root={tmp_path}", "phase=finetune", "unfreeze=all", "phase.batch_size=8",
        "optimizer=sgd", "optimizer.lr=3e-2", "model.image_size=128", "preprocessing=torch",
    )  # fmt: skip
    assert isinstance(run.data, folder.Folder)
    assert isinstance(run.unfreeze, unfreeze.All)
    assert isinstance(run.optimizer, optimizer.SGD)
    assert (run.phase.batch_size, run.optimizer.lr, run.model.image_size, run.preprocessing.mode) == (
        8,
        0.03,
        128,
        "torch",
    )


@pytest.mark.parametrize("group", OPTIONS)
def test_every_option_composes(composed, group: str) -> None:
    extra = {"data=folder": ["data.root=."], "unfreeze=blocks": ["unfreeze.top=1"]}.get(group, [])
    run = composed(group, *extra)
    assert run.parameters()[group.split("=")[0]] == type(getattr(run, group.split("=")[0])).__name__


def test_the_key_is_of_what_decides_the_result(composed) -> None:
    key = composed().key
    assert key == composed("tracking=none", "features.max_gigabytes=1").key == composed("preprocessing=raw").key
    others = [
        composed(change).key
        for change in ("seed=1", "optimizer.lr=1e-2", "head=linear", "features.dtype=float16", "augment=guide")
    ]
    assert len({key, *others}) == 6


def test_zero_is_a_seed_and_less_is_not(composed) -> None:
    assert composed("seed=0").seed == 0
    with pytest.raises(UserError, match=r"^seed was -1\. It must be a whole number of 0 or more\."):
        composed("seed=-1")


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "dogbreeds.core.spec.Spec", "dogbreeds.cli.main", "builtins.eval", "dogbreeds_evil.Adam", "dogbreeds.optimizer.Nope",
        "dogbreeds.optimizer.Spec", "dogbreeds.training.optimizer.Adam.group", "dogbreeds.models.head.Linear",
    ],
)  # fmt: skip
def test_no_target_outside_the_group_s_module_is_instantiated(composed, target: str) -> None:
    with pytest.raises(UserError, match=r"optimizer\._target_ was .* must be a class of dogbreeds\.optimizer"):
        composed(f"optimizer._target_={target}")


@pytest.mark.parametrize("key", ["+optimizer.foo=1", "+optimizer._args_=[1]", "+optimizer._partial_=true"])
def test_a_key_that_its_option_lacks_is_refused(composed, key: str) -> None:
    with pytest.raises(UserError, match=r"is not a setting of Adam\. It has beta_1, "):
        composed(key)


def test_tracking_names_an_absolute_store(composed, tmp_path: Path) -> None:
    run = composed()
    assert isinstance(run.tracking, tracking.Mlflow)
    assert run.tracking.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


# --- configs that would call something ---------------------------------------------------------------------------------

MLP = {"_target_": "dogbreeds.models.head.MLP", "widths": [8], "dropout": 0.1}
FOLDER = {"_target_": "dogbreeds.data.folder.Folder"}


def touch(path: Path) -> dict[str, object]:
    """What Hydra would call, to make a file."""
    return {"_target_": "os.system", "_args_": [f"touch '{path}'"]}


NO_CLASSES = {
    "of another module": ("head", lambda path: touch(path)),
    "imported by the module": ("data", lambda path: touch(path) | {"_target_": "dogbreeds.data.os.system"}),
    "imported by name": ("data", lambda path: {"_target_": "dogbreeds.data.Path", "_args_": [str(path)]}),
    "no spec": ("data", lambda path: {"_target_": "dogbreeds.data.dataset.Source", "name": "x"}),
    "a function": ("data", lambda path: {"_target_": "dogbreeds.data.dataset.hold_out"}),
    "a constant": ("data", lambda path: {"_target_": "dogbreeds.data.OUTSIDE"}),
    "a spec of another module": ("data", lambda path: {"_target_": "dogbreeds.data.Spec"}),
    "another group's": ("head", lambda path: FOLDER),
    "a method": ("data", lambda path: {"_target_": "dogbreeds.data.folder.Folder.open"}),
    "unknown": ("head", lambda path: {"_target_": "dogbreeds.head.Nope"}),
    "with a dot more": ("head", lambda path: {"_target_": "dogbreeds.head..MLP"}),
    "of a module that is not there": ("head", lambda path: {"_target_": "dogbreeds.nope.Nope"}),
    "no text": ("head", lambda path: {"_target_": 7}),
    "a class in a class": ("head", lambda path: {"_target_": touch(path)}),
    "a text for a group": ("head", lambda path: "dogbreeds.models.head.MLP"),
    "a list for a group": ("head", lambda path: [touch(path)]),
    "null for a group": ("head", lambda path: None),
}


@pytest.mark.parametrize("what", NO_CLASSES)
def test_only_a_group_s_own_classes_are_built(tmp_path: Path, what: str) -> None:
    name, group = NO_CLASSES[what]
    with pytest.raises(UserError) as refusal:
        part(OmegaConf.create({name: group(tmp_path / "made")}), name)
    said = (
        rf"{name}\._target_ was .*\. It must be a class of dogbreeds\.{name}, as in the files of conf/{name}/\. Type"
        rf" {name}=<option>; python -m"
    )
    assert re.match(said, str(refusal.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["_target_", "_args_", "_partial_", "_convert_", "_recursive_"])
@pytest.mark.parametrize(
    "deep", [lambda call: call, lambda call: [8, call], lambda call: {"a": {"b": call}}, lambda call: [[{"a": [call]}]]]
)
def test_nothing_within_a_setting_is_called(tmp_path: Path, key: str, deep: Callable[[object], object]) -> None:
    call = touch(tmp_path / "made") if key == "_target_" else {key: True}
    with pytest.raises(
        UserError,
        match=(
            rf"^head\.widths.* has a key {key} \(.*\)\. Only a group itself names a class, and its settings are plain"
            r" values\. "
        ),
    ):
        part(OmegaConf.create({"head": MLP | {"widths": deep(call)}}), "head")
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_would_resolve_to_a_call_stays_a_text(tmp_path: Path) -> None:
    elsewhere = {"head": MLP | {"widths": "${call}"}, "call": touch(tmp_path / "made")}
    with pytest.raises(UserError, match=r"^head\.widths has a key _target_ "):
        part(OmegaConf.create(elsewhere), "head")
    with pytest.raises(UserError, match=r"^head\.widths was "):
        part(OmegaConf.create({"head": MLP | {"widths": "\\${call}"}, "call": touch(tmp_path / "made")}), "head")
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_left_out_is_named() -> None:
    said = (
        r"^head\.widths was not given\. MLP has dropout, widths, and needs them all\. Type head=<option>, whose file"
        r" gives them; "
    )
    with pytest.raises(UserError, match=said):
        part(OmegaConf.create({"head": {key: value for key, value in MLP.items() if key != "widths"}}), "head")
    assert part(OmegaConf.create({"head": MLP}), "head").widths == (8,)
