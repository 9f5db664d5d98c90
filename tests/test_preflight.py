"""What is checked before anything is spent, from arithmetic to a refused attempt."""

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.data.dataset import Dataset, Source, Split
from dogbreeds.experiments.attempt import execute
from dogbreeds.models.model import Backbone
from dogbreeds.models.preprocessing import MODES
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.batchnorm_statistics import PixelFit, divergence
from dogbreeds.training.preflight import Finding, Preflight, initial_loss, judge, said

SMALL = ("data.breeds=6", "phase.epochs=1", "tracking.model=none", "tracking.system_metrics_seconds=0")
# Nats, of the miniature
RAW = {"raw": 0.002, "caffe": 0.29, "torch": 1.54, "unit": 1.54, "tf": 1.55}


def attempted(run, folder: Path):
    return execute(run, RunOrigin("", (), "an attempt", folder))


def three_sentences(text: str) -> bool:
    return len(re.split(r"(?<=[^.]\.) (?=[A-Za-z])", text)) == 3 and text.endswith(".")


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "variance", "stored_mean", "stored_variance", "nats"),
    [
        ([1, 2], [3, 4], [1, 2], [3, 4], 0),
        ([2], [1], [1], [1], 0.5),
        ([0], [4], [0], [1], 0.5 * (np.log(1 / 4) + 4 - 1)),
        ([0], [1], [0], [4], 0.5 * (np.log(4) + 1 / 4 - 1)),
        ([3], [2], [1], [4], 0.5 * (np.log(2) + (2 + 4) / 4 - 1)),
        # Of channels, the median
        ([0, 0, 100], [1, 1, 1], [0, 0, 0], [1, 1, 1], 0),
        ([1, 2, 100], [1, 1, 1], [0, 0, 0], [1, 1, 1], 2),
    ],
)
def test_divergence_is_kullback_and_leibler_s(mean, variance, stored_mean, stored_variance, nats: float) -> None:
    arrays = (np.array(values, dtype=float) for values in (mean, variance, stored_mean, stored_variance))
    assert divergence(*arrays) == pytest.approx(nats, abs=1e-12)


def mismatch(mode: str, best: str, nats: str, best_nats: str, fix: str) -> str:
    return (
        f"preprocessing.mode was {mode}, and the backbone's BatchNorm layers remember {best} pixels: {mode} is {nats}"
        f" nats from what they were trained on, {best} {best_nats}. The convention must be the one of pretraining. Type"
        f" preprocessing={fix}, or preflight=warn to train on all the same."
    )


STRANGE = (
    "No pixel convention fits what the backbone's BatchNorm layers remember (torch 7.00, tf 8.00, unit 9.00, raw 12,"
    " caffe 1,300, in nats). The photos are unlike those of pretraining, or the weights are not those of this backbone."
    " Look at some photos, and at model.weights."
)
FLAT = (
    "preprocessing.mode was torch, and with it the backbone's output hardly differs from photo to photo (0.2 % of the"
    " variance that raw pixels give). There is no BatchNorm that remembers its pixels, but this cannot be learned from."
    " Type preprocessing=native, or preflight=warn to train on all the same."
)
CANNOT_TELL = (
    "preprocessing.mode was caffe, -124 to 151, and the model's config names raw pixels, 0 to 255. The backbone has no"
    " BatchNorm that remembers its pixels, so that it cannot tell which is right. Type preprocessing=native, unless you"
    " know better."
)
SPREAD = {"raw": 0.0, "caffe": 0.4, "torch": 0.998, "tf": 0.999, "unit": 0.99}


@pytest.mark.parametrize(
    ("fit", "mode", "native", "clear", "sentences"),
    [
        (PixelFit(True, RAW), "raw", "raw", None, ""),
        (PixelFit(True, RAW), "torch", "raw", True, mismatch("torch", "raw", "1.54", "0.002", "native")),
        (PixelFit(True, RAW), "caffe", "raw", True, mismatch("caffe", "raw", "0.29", "0.002", "native")),
        # The model's own config is wrong
        (PixelFit(True, RAW), "torch", "torch", True, mismatch("torch", "raw", "1.54", "0.002", "raw")),
        # Both fit, whichever fits best
        (PixelFit(True, RAW | {"caffe": 0.0035}), "caffe", "raw", None, ""),
        (PixelFit(True, {"raw": 12.0, "torch": 7.0, "tf": 8.0, "unit": 9.0, "caffe": 1300.0}), "raw", "raw", False, STRANGE),
        (PixelFit(True, {"raw": 40.0, "torch": 7.0, "tf": 8.0}), "raw", "torch", True, mismatch("raw", "torch", "40", "7.00", "native")),
        (PixelFit(False, SPREAD), "raw", "raw", None, ""),
        (PixelFit(False, SPREAD), "caffe", "raw", False, CANNOT_TELL),
        (PixelFit(False, SPREAD), "torch", "raw", True, FLAT),
        (PixelFit(False, dict.fromkeys(MODES, 0.0)), "tf", "tf", None, ""),
    ],
)  # fmt: skip
def test_what_a_fit_says_of_a_convention(
    fit: PixelFit, mode: str, native: str, clear: bool | None, sentences: str
) -> None:
    found = judge(fit, mode, native)
    assert found == ([] if clear is None else [Finding("pixels", clear, sentences)])
    assert all(three_sentences(finding.said) for finding in found)


def test_a_fit_reads_from_the_best_to_the_worst() -> None:
    fit = PixelFit(True, {"raw": 4481.0, "torch": 1.02, "caffe": 914.0, "tf": 0.0021, "unit": 0.24})
    assert fit.best == "tf"
    assert (
        said(fit, "unit")
        == "pixels: unit is 0.24 nats from what BatchNorm remembers (tf 0.002, unit 0.24, torch 1.02, caffe 914, raw"
        " 4,481)"
    )
    kept = "raw 100 %, caffe 60 %, unit 1 %, torch 0 %, tf 0 %"
    assert (
        said(PixelFit(False, SPREAD), "raw")
        == f"pixels: no trained BatchNorm that could tell; variance between photos that each convention keeps: {kept}"
    )


@pytest.mark.parametrize(
    ("loss", "new_head", "expected"),
    [
        (4.79, True, None),
        (4.0, True, None),
        (0.4, False, None),
        (19.53, True, "about ln(120) = 4.79 with a new head"),
        (0.4, True, "about ln(120) = 4.79 with a new head"),
        (19.53, False, "below ln(120) = 4.79, since its head has learned"),
        (float("nan"), True, "about ln(120) = 4.79 with a new head"),
        (float("inf"), False, "below ln(120) = 4.79, since its head has learned"),
    ],
)
def test_the_loss_before_the_first_step(loss: float, new_head: bool, expected: str | None) -> None:
    found = initial_loss(loss, 120, new_head)
    assert len(found) == (expected is not None)
    for finding in found:
        assert (
            finding.said
            == f"The loss before the first step is {loss:.2f}. It should be {expected}. Features that are far too large"
            " or labels that leak give such a loss: look at preprocessing and data."
        )
        assert (finding.check, finding.clear) == ("initial_loss", False)
        assert three_sentences(finding.said)


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_a_finding_stops_where_it_is_clear_and_asked_to(caplog: pytest.LogCaptureFixture, action: str) -> None:
    check = Preflight(action=action, photos=64, max_duplicate_fraction=0.01)
    doubtful, clear = Finding("pixels", False, "Perhaps."), Finding("labels", True, "Certainly.")
    check.report([doubtful])
    if action == "stop":
        with pytest.raises(UserError, match=r"^Certainly\.$"):
            check.report([doubtful, clear])
    else:
        check.report([doubtful, clear])
    expected = ["preflight: Perhaps."] * 2 + ["preflight: Certainly."] * (action == "warn")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == expected


# --- what a backbone remembers ----------------------------------------------------------------------------------------


@pytest.mark.own_cache
def test_wrong_pixels_are_refused_and_what_was_measured_is_kept(composed, tmp_path: Path) -> None:
    for mode in ("torch", "unit"):
        run = composed(*SMALL, f"preprocessing={mode}")
        with pytest.raises(UserError) as refusal:
            attempted(run, tmp_path)
        text = str(refusal.value)
        assert text.startswith(
            f"preprocessing.mode was {mode}, and the backbone's BatchNorm layers remember raw pixels: {mode} is "
        )
        assert "Type preprocessing=native, or preflight=warn to train on all the same." in text
        assert three_sentences(text)
        # Once for all, and nothing else was spent
        assert [listed.name.split("-")[0] for listed in run.features.store().entries()] == ["preflight"]
    client, experiment = run.tracking.connect()
    assert client.search_runs([experiment]) == []


@pytest.mark.slow
def test_wrong_pixels_are_trained_on_all_the_same_where_that_is_asked_for(composed, tmp_path: Path) -> None:
    client, experiment = composed(*SMALL).tracking.connect()
    attempted(composed(*SMALL, "preprocessing=torch", "preflight=warn"), tmp_path)
    attempted(composed(*SMALL, "preprocessing=torch", "preflight=none"), tmp_path)
    warned, unchecked = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    assert {record.info.status for record in (warned, unchecked)} == {"FINISHED"}
    assert warned.data.tags["preflight"].startswith(
        "preprocessing.mode was torch, and the backbone's BatchNorm layers remember raw pixels: torch is "
    )
    assert warned.data.metrics["epochs"] == 1
    # Checking changes nothing
    assert warned.data.metrics["train/loss"] == unchecked.data.metrics["train/loss"]
    assert min(MODES, key=lambda mode: warned.data.metrics[f"preflight/{mode}"]) == "raw"
    assert unchecked.data.tags["preflight"] == "not checked"
    assert not any(name.startswith("preflight/") for name in unchecked.data.metrics)


def counted(dataset: Dataset, reads: list[str]) -> Dataset:
    """The same data set, whose photos note that they were decoded."""
    source = dataset.train.source

    def read():
        for identity, photo in zip(source.ids, source.read(), strict=True):
            yield lambda identity=identity, photo=photo: reads.append(identity) or photo()

    return replace(dataset, train=Split(replace(source, read=read), dataset.train.rows))


@pytest.mark.own_cache
def test_photos_are_decoded_once_for_all_conventions_and_attempts(composed) -> None:
    run, reads = composed("data.breeds=6", "preflight.photos=20"), []
    dataset, backbone = counted(run.data.open(), reads), run.model.build(0)
    first = run.preflight.fit(backbone, dataset, run.data, run.features.store())
    assert len(set(reads)) == len(reads) == 20
    # From first to last
    assert {name.split("/")[1] for name in reads} == set(dataset.class_names)
    again = run.preflight.fit(backbone, dataset, run.data, run.features.store())
    assert (again, len(reads)) == (first, 20)
    assert first.remembers
    assert first.best == "raw"
    for mode in MODES:
        assert [finding.clear for finding in judge(first, mode, "raw")] == ([] if mode == "raw" else [True])
    other = replace(dataset, train=Split(dataset.train.source, dataset.train.rows[:60]))
    run.preflight.fit(backbone, other, run.data, run.features.store())
    # Other photos are another question
    assert len(reads) == 40
    assert composed("preflight=none").preflight.fit(backbone, dataset, run.data, run.features.store()) is None


@pytest.mark.parametrize(
    ("architecture", "more", "native"),
    [("MobileNetV2", {"alpha": 0.35}, "tf"), pytest.param("ResNet50", {}, "caffe", marks=pytest.mark.slow)],
)
@pytest.mark.own_cache
def test_each_backbone_knows_its_own_pixels(composed, remembering, architecture: str, more: dict, native: str) -> None:
    run = composed("data.breeds=6")
    backbone = Backbone(remembering(architecture, native, **more), (), architecture)
    fit = run.preflight.fit(backbone, run.data.open(), run.data, run.features.store())
    assert fit.remembers
    assert fit.best == native
    assert fit.distances[native] < 0.05
    for mode in MODES:
        expected = [] if mode == native else [mismatch_begins(mode, native)]
        assert [finding.said[: len(mismatch_begins(mode, native))] for finding in judge(fit, mode, native)] == expected


def mismatch_begins(mode: str, native: str) -> str:
    return f"preprocessing.mode was {mode}, and the backbone's BatchNorm layers remember {native} pixels: "


def small_network(normalization: str):
    import keras

    keras.utils.set_random_seed(0)
    photos = keras.Input((32, 32, 3))
    hidden = keras.layers.Conv2D(16, 4, 4)(keras.layers.Rescaling(1 / 127.5, -1)(photos))
    hidden = getattr(keras.layers, normalization)()(hidden)
    return keras.Model(photos, keras.layers.Conv2D(16, 2, activation="gelu")(hidden))


@pytest.mark.parametrize("normalization", ["LayerNormalization", "BatchNormalization"])
@pytest.mark.own_cache
def test_without_a_trained_batchnorm_it_cannot_be_told(composed, normalization: str) -> None:
    run = composed("data.breeds=6")
    # Of BatchNorm, the statistics are those that it is born with
    backbone = Backbone(small_network(normalization), (), normalization)
    fit = run.preflight.fit(backbone, run.data.open(), run.data, run.features.store())
    assert not fit.remembers
    assert said(fit, "raw").startswith(
        "pixels: no trained BatchNorm that could tell; variance between photos that each convention keeps: "
    )
    assert judge(fit, "raw", "raw") == []
    for mode in ("torch", "caffe", "tf", "unit"):
        (finding,) = judge(fit, mode, "raw")
        assert "BatchNorm layers remember" not in finding.said
        # All but the same output for every photo
        assert finding.clear == (fit.distances[mode] > 0.9)
        assert three_sentences(finding.said)
    assert judge(fit, "caffe", "raw") == [Finding("pixels", False, CANNOT_TELL)]


@pytest.mark.slow
def test_random_weights_are_trained_on_without_a_word(
    composed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = composed("model.weights=null", "data.breeds=6", "phase.epochs=1", "tracking=none")
    assert len(attempted(run, tmp_path).outcome.epochs) == 1
    assert any(message.startswith("pixels: no trained BatchNorm that could tell") for message in caplog.messages)
    assert not any(message.startswith("preflight: ") and "pixels" in message for message in caplog.messages)


# --- the data ---------------------------------------------------------------------------------------------------------


def test_a_photo_of_train_among_those_of_test(
    composed, photos: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = photos(train=6, test=3)
    settings = ("data=folder", f"data.root={root}", "data.val_fraction=0.34", "tracking=none")
    assert composed(*settings).preflight.check_data(composed(*settings).data.open()) == []
    shutil.copy(root / "train/breed_1/2.jpg", root / "test/breed_1/again.jpg")
    dataset = composed(*settings).data.open()
    row = dataset.train.source.ids.index("train/breed_1/2.jpg")
    split = "train" if row in dataset.train.rows else "val"
    text = (
        f"1 of 10 photos of test are in {split} too, such as test/breed_1/again.jpg = train/breed_1/2.jpg."
        " preflight.max_duplicate_fraction allows 0.01 of them, since they flatter the result. Remove them from one of"
        " the two, or type preflight=warn."
    )
    assert three_sentences(text)
    with pytest.raises(UserError) as refusal:
        attempted(composed(*settings), tmp_path)
    assert str(refusal.value) == text
    allowed = composed(*settings, "preflight.max_duplicate_fraction=0.2").preflight
    found = allowed.check_data(dataset)
    assert found == [Finding("duplicates", False, text.replace("0.01", "0.2"))]
    allowed.report(found)
    assert caplog.messages[-1] == f"preflight: {found[0].said}"
    # As many as are allowed
    assert composed(*settings, "preflight.max_duplicate_fraction=0.1").preflight.check_data(dataset)[0].clear is False
    assert composed(*settings, "preflight=none").preflight.check_data(dataset) == []


def test_the_drawn_photos_have_no_duplicates(composed) -> None:
    run = composed()
    assert run.preflight.check_data(run.data.open()) == []


def labelled(train: list[int], val: list[int], classes: int = 3) -> Dataset:
    def split(name: str, labels: list[int]) -> Split:
        ids = tuple(f"{name}/{number}" for number in range(len(labels)))
        source = Source(name, np.array(labels, dtype=np.int32), ids, ids, name, lambda: iter(()))
        return Split(source, np.arange(len(labels)))

    return Dataset("labelled", tuple("abcdef"[:classes]), split("train", train), split("val", val), None)


def test_every_photo_that_is_in_train_too_counts(composed) -> None:
    dataset = labelled([0, 1, 2], [0, 0, 0, 1])
    source = replace(dataset.val.source, digests=("train/0", "train/0", "train/0", "new"))
    (found,) = composed("preflight.max_duplicate_fraction=0.5").preflight.check_data(
        replace(dataset, val=Split(source, dataset.val.rows))
    )
    assert found.clear
    assert found.said.startswith("3 of 4 photos of val are in train too, such as val/0 = train/0. ")


def test_without_batchnorm_the_model_s_own_pixels_are_never_refused() -> None:
    assert judge(PixelFit(False, {"raw": 0.95, "torch": 0.0}), "raw", "raw") == []


@pytest.mark.parametrize(
    ("train", "val", "text"),
    [
        ([0, 1, 2], [2, 0], None),
        (
            [0, 1, 3, 2],
            [0],
            "train has a photo with the label 3. Labels must be 0 to 2, one for each class name. Mend the data set.",
        ),
        (
            [0, 1, 2],
            [0, 17],
            "val has a photo with the label 17. Labels must be 0 to 2, one for each class name. Mend the data set.",
        ),
        (
            [0, 1, 2],
            [0, -1],
            "val has a photo with the label -1. Labels must be 0 to 2, one for each class name. Mend the data set.",
        ),
        (
            [0, 2],
            [1],
            "1 of 3 classes have no photo to train on (b). Every class needs one. Add photos, or remove the class.",
        ),
        (
            [2],
            [2],
            "2 of 3 classes have no photo to train on (a, b). Every class needs one. Add photos, or remove the class.",
        ),
    ],
)
def test_labels(composed, train: list[int], val: list[int], text: str | None) -> None:
    found = composed().preflight.check_data(labelled(train, val))
    assert found == ([] if text is None else [Finding("labels", True, text)])
    assert text is None or three_sentences(text)
