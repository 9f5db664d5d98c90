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
SMALL = ("data.breeds=6", "tracking.system_metrics_seconds=0")


def test_one_device_is_the_default_and_neither_decides_the_key(composed) -> None:
    assert composed().strategy == Single()
    assert type(composed().strategy.build()) is OneDevice
    assert composed().key == composed("strategy=mirrored").key == composed(*TWO).key
    assert composed(*TWO).parameters()["strategy.devices"] == ("CPU:0", "CPU:1")


@pytest.mark.parametrize(
    "devices", [0, -1, True, 1.5, "GPU:0", [], ["GPU"], ["GPU:0", "GPU:0"], ["CPU:0", "GPU:0"], [0]]
)
def test_what_names_no_devices_is_refused(devices) -> None:
    said = (
        f"strategy.devices was {devices!r}. It must be null for all GPUs, their number, or different names of one kind,"
        " such as GPU:0. "
    )
    with pytest.raises(UserError, match=re.escape(said)):
        Mirrored(devices=devices)


@pytest.mark.parametrize("devices", [None, 2, ["GPU:0", "GPU:1"]])
def test_without_a_gpu_it_says_what_to_type(devices) -> None:
    with pytest.raises(
        UserError,
        match=r"^strategy=mirrored was asked for, and TensorFlow finds no GPU here\. .* Type strategy=single, or ",
    ):
        Mirrored(devices=devices).build()


@pytest.mark.parametrize(
    ("devices", "there", "said"),
    [
        (4, 1, "strategy.devices was 4. TensorFlow finds GPU:0 here. Type strategy.devices=1, or strategy=single."),
        (
            ["GPU:1", "GPU:5"],
            2,
            (
                "strategy.devices was [GPU:1,GPU:5]. TensorFlow finds GPU:0, GPU:1 here. Type strategy.devices=2, or"
                " fewer."
            ),
        ),
    ],
)
def test_gpus_that_are_not_there_are_refused(devices, there: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [object()] * there)
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        Mirrored(devices=devices).build()


def test_the_processor_is_not_divided_any_more_once_it_is_used() -> None:
    import tensorflow as tf

    tf.constant(0.0)
    with pytest.raises(
        UserError, match=r"^strategy\.devices names CPU:1, and TensorFlow has begun with fewer devices\. "
    ):
        Mirrored(devices=["CPU:0", "CPU:1"]).build()


# --- beside one device ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """A function from a number of parts and names of cases to the folder with what both strategies measured; each is run once."""
    made: dict[tuple[int, str], Path] = {}

    def run(parts: int, cases: str) -> Path:
        if (parts, cases) not in made:
            folder = tmp_path_factory.mktemp("replicas")
            arguments = (str(folder), str(parts), *cases.split())
            with prefork.Process(
                os.environ[prefork.ADDRESS], "tests.replicas", arguments, folder, dict(os.environ)
            ) as process:
                errors = process.communicate(900)[1]
            assert process.returncode == 0, errors
            made[parts, cases] = folder
        return made[parts, cases]

    return run


# By tier; each is trained once on one device and once on parts of the processor.
SLOW, LONG = "dropout trainable drop_connect", "linear mlp batchnorm_head frozen affine gradual photos"


def agree(folder: Path, case: str) -> None:
    """Every step's loss, every epoch's measurements and every weight are one device's, but for rounding."""
    one, several = (json.loads((folder / f"{case}.{kind}.json").read_text()) for kind in ("single", "mirrored"))
    assert len(one["losses"]) == 5 * len(one["metrics"])
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-5, atol=1e-5)
    for epoch, expected in zip(several["metrics"], one["metrics"], strict=True):
        assert epoch == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert (several["verdict"], several["key"]) == (one["verdict"], one["key"])
    with np.load(folder / f"{case}.single.npz") as expected, np.load(folder / f"{case}.mirrored.npz") as found:
        assert expected.files == found.files
        for name in expected.files:
            # A step of Adam is 1e-3
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_frozen_part_says_the_same_of_each_photo(count: int, beside) -> None:
    with np.load(beside(2, SLOW) / f"features.{count}.npz") as both:
        one, several = (both[name] for name in both.files)
    assert one.shape == several.shape
    assert len(one) == count
    # Photos that are mixed up would show
    assert np.ptp(one, axis=0).max() > 0.1 or count == 1
    np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW.split())
def test_a_head_or_fine_tune_trains_as_on_one_device(case: str, beside) -> None:
    agree(beside(2, SLOW), case)


@pytest.mark.long
@pytest.mark.parametrize("case", LONG.split())
def test_whatever_trains_trains_as_on_one_device(case: str, beside) -> None:
    agree(beside(2, LONG), case)


@pytest.mark.long
@pytest.mark.parametrize("case", ["dropout", "trainable"])
def test_three_devices_are_as_one_too(case: str, beside) -> None:
    agree(beside(3, "dropout trainable"), case)


# --- whole commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, made_home: Callable[[Path], Path]) -> Callable[[str], Path]:
    """A function that makes a home for runs and records."""
    return lambda name: made_home(tmp_path / name)


@pytest.mark.parametrize(
    "moments",
    [pytest.param(["fine-tune"], marks=pytest.mark.slow), pytest.param(["head", "checkpoint"], marks=pytest.mark.long)],
)
def test_what_was_killed_on_two_devices_ends_as_if_it_had_not_been(place, moments: list[str]) -> None:
    """A frozen attempt and its fine-tune, with dropout and drop-connect; afterwards each is saved without a trace of the devices."""
    whole = place("whole")
    done = train(whole, 0, *TWO)
    assert done.returncode == 0, done.stderr
    expected, passed = final(whole), (whole / "moments").read_text().split()
    steps = [index for index, kind in enumerate(passed, 1) if kind == "step"]
    at = {"head": steps[len(steps) // 5], "fine-tune": steps[-9], "checkpoint": chosen(passed, 0)}
    for name in moments:
        cut = place(name)
        assert train(cut, at[name], *TWO).returncode == -signal.SIGKILL
        done = train(cut, 0, *TWO)
        assert done.returncode == 0, done.stderr
        assert json.dumps(final(cut), default=repr) == json.dumps(expected, default=repr)


@pytest.mark.long
def test_a_checkpoint_of_one_device_is_not_gone_on_with_on_two(place) -> None:
    whole, cut, anew = place("whole"), place("cut"), place("anew")
    assert train(whole, 0, *TWO).returncode == 0
    steps = [index for index, kind in enumerate((whole / "moments").read_text().split(), 1) if kind == "step"]
    assert train(cut, steps[12]).returncode == -signal.SIGKILL
    done = train(cut, 0, *TWO)
    assert done.returncode == 0, done.stderr
    assert "the checkpoint that is there is of another strategy: this attempt begins anew" in done.stdout + done.stderr
    # Features that one device computed, of which two may find other last bits
    shutil.copytree(cut / "cache", anew / "cache")
    assert train(anew, 0, *TWO).returncode == 0
    # Another strategy is another sweep, of the same attempts
    found, wanted = final(cut, cut_off=1), final(anew)
    # Curves have the epochs that one device recorded
    for phase in wanted:
        assert {key: found[phase][key] for key in ("weights", "verdict", "logits")} == {
            key: wanted[phase][key] for key in ("weights", "verdict", "logits")
        }


@pytest.mark.slow
def test_a_user_trains_on_two_devices_and_is_told_so(command) -> None:
    done = command("train", *SMALL, "phase.epochs=3", *TWO)
    assert done.returncode == 0, done.stderr
    assert "each batch is split over CPU:0 and CPU:1" in done.stdout + done.stderr
    assert "\nlearned: " in done.stdout + done.stderr
    refused = command("train", *SMALL, "strategy=mirrored")
    assert refused.returncode == 1
    assert "error: strategy=mirrored was asked for, and TensorFlow finds no GPU here." in refused.stderr


@pytest.mark.long
def test_what_a_user_goes_on_to_do_on_two_devices(command) -> None:
    done = command("train", *SMALL, "phase.epochs=3", *TWO)
    assert done.returncode == 0, done.stderr
    tuned = command("train", *SMALL, "phase.epochs=3", *TWO, "phase=finetune", "unfreeze.batchnorm=trainable")
    assert tuned.returncode == 0, tuned.stderr
    assert "going on from run " in tuned.stdout + tuned.stderr
    searched = command("train", *SMALL, *TWO, "phase=lr_range", "phase.steps=30")
    assert searched.returncode == 0, searched.stderr
