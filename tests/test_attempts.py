"""The attempts of the guide, `attempt=…`."""

from pathlib import Path

import pytest

from dogbreeds.core.paths import config_folder
from dogbreeds.experiments.attempt import execute
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.phase import Finetune, Frozen

# Name of the attempt: its phase, and the settings in its file.
ATTEMPTS = {
    "frozen": (Frozen, {"optimizer.lr": 1e-3, "unfreeze": "Nothing", "preflight.action": "stop"}),
    "lr_collapse": (Frozen, {"optimizer.lr": 1e-2, "unfreeze": "Nothing", "preflight.action": "stop"}),
    "torch_pixels": (
        Frozen,
        {"optimizer.lr": 1e-3, "unfreeze": "Nothing", "preprocessing.mode": "torch", "preflight.action": "warn"},
    ),
    "finetune_20": (
        Finetune,
        {
            "unfreeze.layers": 20,
            "unfreeze.batchnorm": "frozen",
            "optimizer.lr": 1e-5,
            "phase.epochs": 30,
            "phase.patience_epochs": 8,
        },
    ),
    "finetune_50": (
        Finetune,
        {
            "unfreeze.layers": 50,
            "unfreeze.batchnorm": "affine",
            "optimizer.lr": 1e-4,
            "phase.epochs": 50,
            "phase.patience_epochs": 10,
        },
    ),
    "resnet50_frozen": (
        Frozen,
        {"model.architecture": "ResNet50", "preprocessing.mode": "caffe", "optimizer.lr": 1e-3, "unfreeze": "Nothing"},
    ),
    "resnet50_finetune_50": (
        Finetune,
        {
            "model.architecture": "ResNet50",
            "unfreeze.layers": 50,
            "unfreeze.batchnorm": "affine",
            "optimizer.lr": 1e-4,
            "phase.epochs": 50,
        },
    ),
}
# Those of Keras' example: the head, then what differs.
KERAS = {"head": "BatchNorm", "phase.patience_epochs": None}
KERAS_FROZEN = {**KERAS, "unfreeze": "Nothing", "optimizer.lr": 1e-2, "phase.epochs": 25}
KERAS_FINETUNE = {**KERAS, "unfreeze.layers": 20, "optimizer.lr": 1e-5, "phase.batch_size": 64, "augment": "Guide"}
ATTEMPTS |= {
    "keras_frozen": (Frozen, {**KERAS_FROZEN, "augment": "Guide", "phase.batch_size": 64}),
    "keras_no_augmentation": (Frozen, {**KERAS_FROZEN, "augment": "Plain", "phase.batch_size": 64}),
    "keras_ema": (Frozen, {**KERAS_FROZEN, "augment": "Guide", "ema.decay": 0.99}),
    "keras_small_batches": (Frozen, {**KERAS_FROZEN, "augment": "Guide", "phase.batch_size": 8}),
    "keras_finetune": (Finetune, {**KERAS_FINETUNE, "unfreeze.exact": False, "phase.epochs": 4}),
    "keras_split_block": (Finetune, {**KERAS_FINETUNE, "unfreeze.exact": True, "phase.epochs": 4}),
    "keras_batchnorm": (Finetune, {**KERAS_FINETUNE, "unfreeze.batchnorm": "trainable", "phase.epochs": 1}),
}
MODELS = {
    "effnetb0": ("EfficientNetB0", "raw"),
    "mobilenetv2": ("MobileNetV2", "tf"),
}


def test_every_attempt_has_expected_settings_here() -> None:
    assert set(ATTEMPTS) == {path.stem for path in (config_folder() / "attempt").glob("*.yaml")}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_sets_the_phase_and_settings_of_its_file(composed, name: str) -> None:
    phase, settings = ATTEMPTS[name]
    run = composed(f"attempt={name}")
    assert isinstance(run.phase, phase)
    assert settings.items() <= run.parameters().items()
    if name == "frozen":
        # The preflight does not change the result.
        assert run.key == composed(f"attempt={name}", "preflight=none").key


@pytest.mark.parametrize(
    ("model", "name"),
    [(model, name) for model in MODELS for name in ATTEMPTS if model == "effnetb0" or not name.startswith("keras")],
)
def test_attempt_composes_with_any_model(composed, model: str, name: str) -> None:
    phase, settings = ATTEMPTS[name]
    run = composed(f"model={model}", f"attempt={name}")
    architecture, pixels = MODELS[model]
    assert isinstance(run.phase, phase)
    assert run.model.architecture == architecture
    assert run.preprocessing.mode == ("torch" if name == "torch_pixels" else pixels)
    chosen_by_model = ("model.architecture", "preprocessing.mode")
    others = {key: value for key, value in settings.items() if key not in chosen_by_model}
    assert others.items() <= run.parameters().items()


def test_command_line_overrides_an_attempt(composed) -> None:
    run = composed(
        "attempt=finetune_50",
        "optimizer.lr=3e-3",
        "unfreeze.layers=9",
        "phase.epochs=2",
        "preprocessing=unit",
        "seed=4",
    )
    assert (run.optimizer.lr, run.unfreeze.layers, run.phase.epochs, run.preprocessing.mode, run.seed) == (
        3e-3,
        9,
        2,
        "unit",
        4,
    )
    assert run.unfreeze.batchnorm == "affine"


def test_default_run_equals_the_frozen_attempt(composed) -> None:
    assert composed().key == composed("attempt=frozen").key != composed("attempt=lr_collapse").key


@pytest.mark.slow
def test_stop_on_collapse_ends_an_attempt_early(composed, tmp_path: Path) -> None:
    settings = (
        "attempt=lr_collapse",
        "optimizer.lr=3e-1",
        "data.classes=12",
        "data.test_per_class=1",
        "phase.batch_size=8",
        "tracking.model=none",
    )
    run = composed(
        *settings, "phase.patience_epochs=null", "stop_on_collapse=true", "tracking.system_metrics_seconds=0"
    )
    result = execute(run, RunOrigin("", (), "a collapse", tmp_path))
    val = [epoch.val.accuracy.value for epoch in result.history.epochs]
    assert result.history.stop_reason == "stop_on_collapse"
    assert result.verdict.name == "collapsed"
    assert len(val) < run.phase.epochs
    assert max(val) > 0.6
    assert max(val[-2:]) < 0.75 * max(val)
    assert (
        f"peaked at {100 * max(val):.1f} % in epoch {1 + val.index(max(val))} and fell to {100 * val[-1]:.1f} %"
        in result.verdict.reason
    )
    # The weights of the best epoch are restored all the same.
    assert result.objective == max(val)
    client, experiment = run.tracking.connect()
    record = client.search_runs([experiment])[0]
    assert record.data.tags["verdict"] == "collapsed"
    assert (
        record.data.tags["verdict.advice"]
        == "The learning rate is too high for this head: type optimizer.lr=1e-2, or head=batchnorm."
    )
    assert record.data.metrics["verdict/peak"] == max(val)
    assert record.data.metrics["verdict/fall"] == pytest.approx(max(val) - val[-1])
    assert record.data.params["stop_on_collapse"] == "true"
