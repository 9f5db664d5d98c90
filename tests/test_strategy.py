import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.models.replicas import OneDevice
from dogbreeds.models.strategy import Mirrored, Single
from tests import prefork
from tests.test_resume import chosen, final, train

TWO = ("strategy=mirrored", "strategy.devices=[CPU:0,CPU:1]")
SMALL = ("data.classes=6", "tracking.system_metrics_seconds=0")


def test_strategy_defaults_to_one_device_and_is_no_part_of_the_run_key(composed) -> None:
    assert composed().strategy == Single()
    assert type(composed().strategy.build()) is OneDevice
    assert composed().key == composed("strategy=mirrored").key == composed(*TWO).key
    assert composed(*TWO).parameters()["strategy.devices"] == ("CPU:0", "CPU:1")


@pytest.mark.parametrize(
    "devices", [0, -1, True, 1.5, "GPU:0", [], ["GPU"], ["GPU:0", "GPU:0"], ["CPU:0", "GPU:0"], [0]]
)
def test_mirrored_devices_of_another_form_raise_a_user_error(devices) -> None:
    with pytest.raises(UserError) as error:
        Mirrored(devices=devices)
    assert str(error.value).startswith(f"strategy.devices was {devices!r}. It must be null for all GPUs, ")
    assert "a number of GPUs, or distinct device names of one kind, such as GPU:0." in str(error.value)
    assert "Type strategy.devices=2 or 'strategy.devices=[GPU:0,GPU:1]'" in str(error.value)


@pytest.mark.parametrize("devices", [None, 2, ["GPU:0", "GPU:1"]])
def test_mirrored_without_a_gpu_raises_a_user_error(devices) -> None:
    with pytest.raises(
        UserError,
        match=r"^strategy=mirrored .* TensorFlow finds no GPU .* Type strategy=single, or 'strategy\.devices=\[CPU:0,",
    ):
        Mirrored(devices=devices).build()


@pytest.mark.parametrize(
    ("devices", "available", "facts"),
    [
        (
            4,
            1,
            (
                "strategy.devices was 4. TensorFlow finds GPU:0 ",
                " Type strategy.devices=1, or strategy=single.",
            ),
        ),
        (
            ["GPU:1", "GPU:5"],
            2,
            (
                "strategy.devices was [GPU:1,GPU:5]. TensorFlow finds GPU:0, GPU:1 ",
                " Type strategy.devices=2, or fewer.",
            ),
        ),
    ],
)
def test_mirrored_on_gpus_that_do_not_exist_raises_a_user_error(
    devices, available: int, facts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [object()] * available)
    begin, end = map(re.escape, facts)
    with pytest.raises(UserError, match=f"^{begin}.*{end}$"):
        Mirrored(devices=devices).build()


def test_mirrored_on_cpu_devices_raises_a_user_error_after_tensorflow_has_started() -> None:
    import tensorflow as tf

    tf.constant(0.0)
    with pytest.raises(
        UserError,
        match=r"^strategy\.devices names CPU:1, but TensorFlow has already started .* Type .* this strategy\.$",
    ):
        Mirrored(devices=["CPU:0", "CPU:1"]).build()


# --- compared with one device ---------------------------------------------------


@pytest.fixture(scope="module")
def both_strategies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Return a function that trains cases with both strategies, once for each combination of arguments.

    It takes the number of devices and the names of cases, separated by spaces, and returns the folder with the results.
    """
    made: dict[tuple[int, str], Path] = {}

    def run(num_devices: int, cases: str) -> Path:
        if (num_devices, cases) not in made:
            folder = tmp_path_factory.mktemp("replicas")
            arguments = (str(folder), str(num_devices), *cases.split())
            with prefork.Process(
                os.environ[prefork.ADDRESS_ENV], "tests.replicas", arguments, folder, dict(os.environ)
            ) as process:
                errors = process.communicate(900)[1]
            assert process.returncode == 0, errors
            made[num_devices, cases] = folder
        return made[num_devices, cases]

    return run


# Cases by tier. Each is trained once on one device and once on several logical devices of the CPU.
SLOW = "dropout trainable"
LONG = "drop_connect linear mlp batchnorm_head frozen affine gradual images clipped"
# In float16, sums over a share of the batch round otherwise than sums over all of it.
LONG_AND_MIXED = f"{LONG} mixed"


def assert_equal_up_to_rounding(folder: Path, case: str) -> None:
    """Compare the loss of each step, the metrics of each epoch and all weights of both strategies."""
    one, several = (json.loads((folder / f"{case}.{kind}.json").read_text()) for kind in ("single", "mirrored"))
    assert len(one["losses"]) == 5 * len(one["metrics"])
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-5, atol=1e-5)
    for epoch, expected in zip(several["metrics"], one["metrics"], strict=True):
        assert epoch == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert (several["verdict"], several["key"]) == (one["verdict"], one["key"])
    with np.load(folder / f"{case}.single.npz") as expected, np.load(folder / f"{case}.mirrored.npz") as found:
        assert expected.files == found.files
        for name in expected.files:
            # One step of Adam changes a weight by about 1e-3.
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(1, marks=pytest.mark.long),
        pytest.param(2, marks=pytest.mark.long),
        pytest.param(7, marks=pytest.mark.slow),
    ],
)
def test_prefix_on_two_devices_computes_the_features_of_one_device(count: int, both_strategies) -> None:
    with np.load(both_strategies(2, SLOW) / f"features.{count}.npz") as both:
        one, several = (both[name] for name in both.files)
    assert one.shape == several.shape
    assert len(one) == count
    # Features differ between images, so that a wrong order of images would be noticed.
    assert np.ptp(one, axis=0).max() > 0.1 or count == 1
    np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW.split())
def test_mirrored_training_of_a_head_or_fine_tune_equals_training_on_one_device(case: str, both_strategies) -> None:
    assert_equal_up_to_rounding(both_strategies(2, SLOW), case)


@pytest.mark.long
@pytest.mark.parametrize("case", LONG.split())
def test_mirrored_training_of_every_kind_equals_training_on_one_device(case: str, both_strategies) -> None:
    assert_equal_up_to_rounding(both_strategies(2, LONG_AND_MIXED), case)


@pytest.mark.long
def test_mirrored_training_in_float16_is_near_training_on_one_device(both_strategies) -> None:
    folder = both_strategies(2, LONG_AND_MIXED)
    one, several = (json.loads((folder / f"mixed.{kind}.json").read_text()) for kind in ("single", "mirrored"))
    assert len(one["losses"]) == 15
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("case", ["dropout", "trainable"])
def test_mirrored_training_on_three_devices_equals_training_on_one_device(case: str, both_strategies) -> None:
    assert_equal_up_to_rounding(both_strategies(3, "dropout trainable"), case)


# --- whole commands -------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, make_home: Callable[[Path], Path]) -> Callable[[str], Path]:
    """Return a function that makes a home folder for runs and records."""
    return lambda name: make_home(tmp_path / name)


@pytest.mark.long
@pytest.mark.parametrize(
    "moments",
    [["fine-tune"], ["head", "checkpoint"]],
)
def test_mirrored_training_resumes_bit_for_bit_after_it_was_killed(place, moments: list[str]) -> None:
    """Train a frozen run and its fine-tune, with dropout and drop-connect. Saved models do not depend on devices."""
    uninterrupted = place("uninterrupted")
    done = train(uninterrupted, 0, *TWO)
    assert done.returncode == 0, done.stderr
    expected = final(uninterrupted)
    passed = (uninterrupted / "moments").read_text().split()
    steps = [index for index, kind in enumerate(passed, 1) if kind == "step"]
    kill_at = {"head": steps[len(steps) // 5], "fine-tune": steps[-9], "checkpoint": chosen(passed, 0)}
    for name in moments:
        killed = place(name)
        assert train(killed, kill_at[name], *TWO).returncode == -signal.SIGKILL
        done = train(killed, 0, *TWO)
        assert done.returncode == 0, done.stderr
        assert json.dumps(final(killed), default=repr) == json.dumps(expected, default=repr)


@pytest.mark.long
def test_mirrored_training_does_not_resume_from_a_checkpoint_of_one_device(place) -> None:
    uninterrupted, killed, from_scratch = place("uninterrupted"), place("killed"), place("from_scratch")
    assert train(uninterrupted, 0, *TWO).returncode == 0
    kinds = (uninterrupted / "moments").read_text().split()
    steps = [index for index, kind in enumerate(kinds, 1) if kind == "step"]
    assert train(killed, steps[12]).returncode == -signal.SIGKILL
    done = train(killed, 0, *TWO)
    assert done.returncode == 0, done.stderr
    assert "the checkpoint was written with a different strategy: starting over" in done.stdout + done.stderr
    # Both use the features that one device computed, since two devices may compute other last bits.
    shutil.copytree(killed / "cache", from_scratch / "cache")
    assert train(from_scratch, 0, *TWO).returncode == 0
    # With another strategy it is another sweep, of the same runs. So one sweep stays cut off.
    found, expected = final(killed, cut_off=1), final(from_scratch)
    # Curves are not compared: they include the epochs that were recorded on one device.
    for phase in expected:
        assert {key: found[phase][key] for key in ("weights", "verdict", "logits")} == {
            key: expected[phase][key] for key in ("weights", "verdict", "logits")
        }


@pytest.mark.long
def test_train_command_with_mirrored_strategy_logs_its_devices(command) -> None:
    done = command("train", *SMALL, "phase.epochs=3", *TWO)
    assert done.returncode == 0, done.stderr
    assert "each batch is split over CPU:0 and CPU:1" in done.stdout + done.stderr
    assert "\nlearned: " in done.stdout + done.stderr
    refused = command("train", *SMALL, "strategy=mirrored")
    assert refused.returncode == 1
    assert "error: strategy=mirrored was given, but TensorFlow finds no GPU on this machine." in refused.stderr


@pytest.mark.long
def test_finetune_and_lr_range_commands_run_with_mirrored_strategy(command) -> None:
    done = command("train", *SMALL, "phase.epochs=3", *TWO)
    assert done.returncode == 0, done.stderr
    tuned = command("train", *SMALL, "phase.epochs=3", *TWO, "phase=finetune", "unfreeze.batchnorm=trainable")
    assert tuned.returncode == 0, tuned.stderr
    assert "fine-tuning from run " in tuned.stdout + tuned.stderr
    searched = command("train", *SMALL, *TWO, "phase=lr_range", "phase.steps=30")
    assert searched.returncode == 0, searched.stderr
