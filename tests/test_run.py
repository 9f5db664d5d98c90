import dataclasses
from pathlib import Path

import pytest

from dogbreeds import data, model, optimizer, phase, tracking, unfreeze
from dogbreeds.run import ALONE, Run
from dogbreeds.spec import Refused, home

OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in (home() / "conf").glob("*/*.yaml") if path.parent.name not in ("hydra", "attempt"))


def test_fields_groups_and_modules_have_the_same_names() -> None:
    groups = {folder.name for folder in (home() / "conf").iterdir() if folder.is_dir()} - {"hydra", "attempt"}  # an attempt is a diff of the others
    assert groups == {field.name for field in dataclasses.fields(Run)} - set(ALONE)
    assert all((home() / f"dogbreeds/{group}.py").is_file() for group in groups)


def test_with_nothing_named_it_is_the_miniature(composed) -> None:
    run = composed()
    assert isinstance(run.model, model.Miniature)
    assert isinstance(run.data, data.Miniature)
    assert (run.model.image_size, run.preprocessing.mode, run.optimizer.lr, run.phase.batch_size, run.seed) == (64, "raw", 1e-3, 32, 0)


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
def test_a_model_brings_its_data_size_pixels_and_rates(composed, name: str, size: int, pixels: str, finetune_lr: float) -> None:
    run = composed(f"model={name}")
    assert isinstance(run.data, data.StanfordDogs)
    assert (run.model.image_size, run.preprocessing.mode, run.optimizer.lr, run.model.weights) == (size, pixels, 1e-3, "imagenet")
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
    assert isinstance(run.data, data.Folder)
    assert isinstance(run.unfreeze, unfreeze.All)
    assert isinstance(run.optimizer, optimizer.SGD)
    assert (run.phase.batch_size, run.optimizer.lr, run.model.image_size, run.preprocessing.mode) == (8, 0.03, 128, "torch")


@pytest.mark.parametrize("group", OPTIONS)
def test_every_option_composes(composed, group: str) -> None:
    extra = {"data=folder": ["data.root=."], "unfreeze=blocks": ["unfreeze.top=1"]}.get(group, [])
    run = composed(group, *extra)
    assert run.parameters()[group.split("=")[0]] == type(getattr(run, group.split("=")[0])).__name__


def test_the_key_is_of_what_decides_the_result(composed) -> None:
    key = composed().key
    assert key == composed("tracking=none", "features.max_gigabytes=1").key == composed("preprocessing=raw").key
    others = [composed(change).key for change in ("seed=1", "optimizer.lr=1e-2", "head=linear", "features.dtype=float16", "augment=guide")]
    assert len({key, *others}) == 6


def test_zero_is_a_seed_and_less_is_not(composed) -> None:
    assert composed("seed=0").seed == 0
    with pytest.raises(Refused, match=r"^seed was -1\. It must be a whole number of 0 or more\."):
        composed("seed=-1")


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "dogbreeds.spec.Spec", "dogbreeds.command.main", "builtins.eval", "dogbreeds_evil.Adam", "dogbreeds.optimizer.Nope",
        "dogbreeds.optimizer.Spec", "dogbreeds.optimizer.Adam.group", "dogbreeds.head.Linear",
    ],
)  # fmt: skip
def test_no_target_outside_the_group_s_module_is_instantiated(composed, target: str) -> None:
    with pytest.raises(Refused, match=r"optimizer\._target_ was .* must be a class of dogbreeds\.optimizer"):
        composed(f"optimizer._target_={target}")


@pytest.mark.parametrize("key", ["+optimizer.foo=1", "+optimizer._args_=[1]", "+optimizer._partial_=true"])
def test_a_key_that_its_option_lacks_is_refused(composed, key: str) -> None:
    with pytest.raises(Refused, match=r"is not a setting of Adam\. It has beta_1, "):
        composed(key)


def test_tracking_names_an_absolute_store(composed, tmp_path: Path) -> None:
    run = composed()
    assert isinstance(run.tracking, tracking.Mlflow)
    assert run.tracking.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
