"""Preflight checks, from the arithmetic to a run that is refused."""

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.data.dataset import Dataset, Source, Split
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.experiments.attempt import execute
from dogbreeds.models.model import Backbone
from dogbreeds.models.preprocessing import MODES
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.batchnorm_statistics import gaussian_kl
from dogbreeds.training.pixel_fit import PixelFit, multiplications
from dogbreeds.training.pixel_reading import PixelReading, Reading, choose_rows, read_pixels, thumbnails
from dogbreeds.training.preflight import Finding, Preflight, check_initial_loss, check_pixels, pixel_fit_line

SMALL = ("data.classes=6", "phase.epochs=1", "tracking.model=none", "tracking.system_metrics_seconds=0")
# KL divergences of the miniature, in nats.
RAW = {"raw": 0.002, "caffe": 0.29, "torch": 1.54, "unit": 1.54, "tf": 1.55}


def train(run, folder: Path):
    return execute(run, RunOrigin("", (), "a run", folder))


def three_sentences(text: str) -> bool:
    return len(re.split(r"(?<=[^.]\.) (?=[A-Za-z])", text)) == 3 and text.endswith(".")


def assert_finding(finding: Finding, check: str, certain: bool, facts: Sequence[str]) -> None:
    """Check a finding, whose message must have three sentences and contain these facts in their order."""
    assert (finding.check, finding.certain) == (check, certain)
    assert three_sentences(finding.message)
    assert re.search(".*".join(map(re.escape, facts)), finding.message), finding.message


# --- arithmetic ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "variance", "running_mean", "running_variance", "nats"),
    [
        ([1, 2], [3, 4], [1, 2], [3, 4], 0),
        ([2], [1], [1], [1], 0.5),
        ([0], [4], [0], [1], 0.5 * (np.log(1 / 4) + 4 - 1)),
        ([0], [1], [0], [4], 0.5 * (np.log(4) + 1 / 4 - 1)),
        ([3], [2], [1], [4], 0.5 * (np.log(2) + (2 + 4) / 4 - 1)),
        # The median over channels
        ([0, 0, 100], [1, 1, 1], [0, 0, 0], [1, 1, 1], 0),
        ([1, 2, 100], [1, 1, 1], [0, 0, 0], [1, 1, 1], 2),
    ],
)
def test_gaussian_kl_is_the_median_over_channels(mean, variance, running_mean, running_variance, nats: float) -> None:
    arrays = (np.array(values, dtype=float) for values in (mean, variance, running_mean, running_variance))
    assert gaussian_kl(*arrays) == pytest.approx(nats, abs=1e-12)


def mismatch(mode: str, best: str, nats: str, best_nats: str, fix: str) -> tuple[str, ...]:
    """Return the facts of a mismatch: received, evidence, and what to set."""
    return (
        f"preprocessing.mode={mode} does not match the pretrained weights.",
        f"BatchNorm's running statistics fit {best} pixels (KL divergence {best_nats} nats; {mode}: {nats}).",
        f"Set preprocessing={fix}, or preflight=warn to train anyway.",
    )


NO_FIT = (
    "No pixel convention fits BatchNorm's running statistics",
    "KL divergence in nats: torch 7.00, tf 8.00, unit 9.00, raw 12, caffe 1,300",
    "Check some images, and model.weights.",
)
FLAT = (
    "preprocessing.mode=torch",
    "output nearly the same for all images (0.2 % of the variance with raw pixels)",
    "Set preprocessing=native, or preflight=warn to train anyway.",
)
UNCHECKED = (
    "preprocessing.mode=caffe (-124 to 151) differs from the model's config, which names raw pixels (0 to 255).",
    "no trained BatchNorm layer",
    "Set preprocessing=native, unless",
)
LOST_VARIANCE = {"raw": 0.0, "caffe": 0.4, "torch": 0.998, "tf": 0.999, "unit": 0.99}


@pytest.mark.parametrize(
    ("fit", "mode", "native", "certain", "facts"),
    [
        (PixelFit(True, RAW), "raw", "raw", None, ()),
        (PixelFit(True, RAW), "torch", "raw", True, mismatch("torch", "raw", "1.54", "0.002", "native")),
        (PixelFit(True, RAW), "caffe", "raw", True, mismatch("caffe", "raw", "0.29", "0.002", "native")),
        # The model's config names the wrong convention.
        (PixelFit(True, RAW), "torch", "torch", True, mismatch("torch", "raw", "1.54", "0.002", "raw")),
        # Both fit, whichever fits better.
        (PixelFit(True, RAW | {"caffe": 0.0035}), "caffe", "raw", None, ()),
        (
            PixelFit(True, {"raw": 12.0, "torch": 7.0, "tf": 8.0, "unit": 9.0, "caffe": 1300.0}),
            "raw",
            "raw",
            False,
            NO_FIT,
        ),
        (
            PixelFit(True, {"raw": 40.0, "torch": 7.0, "tf": 8.0}),
            "raw",
            "torch",
            True,
            mismatch("raw", "torch", "40", "7.00", "native"),
        ),
        (PixelFit(False, LOST_VARIANCE), "raw", "raw", None, ()),
        (PixelFit(False, LOST_VARIANCE), "caffe", "raw", False, UNCHECKED),
        (PixelFit(False, LOST_VARIANCE), "torch", "raw", True, FLAT),
        (PixelFit(False, dict.fromkeys(MODES, 0.0)), "tf", "tf", None, ()),
    ],
)
def test_check_pixels_reports_a_convention_that_does_not_fit(
    fit: PixelFit, mode: str, native: str, certain: bool | None, facts: tuple[str, ...]
) -> None:
    found = check_pixels(fit, mode, native)
    assert len(found) == (certain is not None)
    for finding in found:
        assert_finding(finding, "pixels", certain, facts)


def test_pixel_fit_line_lists_the_conventions_from_the_best_to_the_worst() -> None:
    fit = PixelFit(True, {"raw": 4481.0, "torch": 1.02, "caffe": 914.0, "tf": 0.0021, "unit": 0.24})
    assert fit.best == "tf"
    assert (
        pixel_fit_line(fit, "unit")
        == "pixels: KL divergence of unit from BatchNorm's running statistics is 0.24 nats (tf 0.002, unit 0.24, torch"
        " 1.02, caffe 914, raw 4,481)"
    )
    variances = "raw 100 %, caffe 60 %, unit 1 %, torch 0 %, tf 0 %"
    line = pixel_fit_line(PixelFit(False, LOST_VARIANCE), "raw")
    assert line == f"pixels: no trained BatchNorm to check; relative variance between images by convention: {variances}"


@pytest.mark.parametrize(
    ("loss", "new_head", "expected"),
    [
        (4.79, True, None),
        (4.0, True, None),
        (0.4, False, None),
        (19.53, True, "about ln(120) = 4.79 with a new head"),
        (0.4, True, "about ln(120) = 4.79 with a new head"),
        (19.53, False, "below ln(120) = 4.79, because the head is trained"),
        (float("nan"), True, "about ln(120) = 4.79 with a new head"),
        (float("inf"), False, "below ln(120) = 4.79, because the head is trained"),
    ],
)
def test_check_initial_loss_reports_a_loss_out_of_range(loss: float, new_head: bool, expected: str | None) -> None:
    found = check_initial_loss(loss, 120, new_head)
    assert len(found) == (expected is not None)
    for finding in found:
        facts = (
            f"loss before the first step is {loss:.2f}.",
            f"It should be {expected}.",
            "check preprocessing and data.",
        )
        assert_finding(finding, "initial_loss", False, facts)


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_report_raises_for_a_certain_finding_if_the_action_is_stop(
    caplog: pytest.LogCaptureFixture, action: str
) -> None:
    check = Preflight(action=action, images=64, max_duplicate_fraction=0.01)
    uncertain, certain = Finding("pixels", False, "Perhaps."), Finding("labels", True, "Certainly.")
    check.report([uncertain])
    if action == "stop":
        with pytest.raises(UserError, match=r"^Certainly\.$"):
            check.report([uncertain, certain])
    else:
        check.report([uncertain, certain])
    expected = ["preflight: Perhaps."] * 2 + ["preflight: Certainly."] * (action == "warn")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == expected


# --- running statistics -------------------------------------------------------


@pytest.mark.own_cache
def test_wrong_pixels_are_refused_and_their_fit_is_cached(composed, tmp_path: Path) -> None:
    for mode in ("torch", "unit"):
        run = composed(*SMALL, f"preprocessing={mode}")
        with pytest.raises(UserError) as refusal:
            train(run, tmp_path)
        text = str(refusal.value)
        assert text.startswith(mismatch_start(mode, "raw"))
        assert re.search(rf"\(KL divergence \S+ nats; {mode}: \S+\)\.", text)
        assert text.endswith("Set preprocessing=native, or preflight=warn to train anyway.")
        assert three_sentences(text)
        # One measurement serves all conventions, and nothing else was computed.
        assert [listed.name.split("-")[0] for listed in run.features.open_cache().entries()] == ["preflight"]
    client, experiment = run.tracking.connect()
    assert client.search_runs([experiment]) == []


@pytest.mark.slow
def test_wrong_pixels_are_trained_with_preflight_warn_or_none(composed, tmp_path: Path) -> None:
    client, experiment = composed(*SMALL).tracking.connect()
    train(composed(*SMALL, "preprocessing=torch", "preflight=warn"), tmp_path)
    train(composed(*SMALL, "preprocessing=torch", "preflight=none"), tmp_path)
    warned, unchecked = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    assert {record.info.status for record in (warned, unchecked)} == {"FINISHED"}
    assert warned.data.tags["preflight"].startswith(mismatch_start("torch", "raw"))
    assert warned.data.metrics["epochs"] == 1
    # The check does not change the result.
    assert warned.data.metrics["train/loss"] == unchecked.data.metrics["train/loss"]
    assert min(MODES, key=lambda mode: warned.data.metrics[f"preflight/{mode}"]) == "raw"
    assert unchecked.data.tags["preflight"] == "not checked"
    assert not any(name.startswith("preflight/") for name in unchecked.data.metrics)


def counted(dataset: Dataset, reads: list[str]) -> Dataset:
    """Return the same data set, whose training images append their id to `reads` when they are decoded."""
    source = dataset.train.source

    def loaders():
        for image_id, load in zip(source.ids, source.loaders(), strict=True):
            yield lambda image_id=image_id, load=load: reads.append(image_id) or load()

    return replace(dataset, train=Split(replace(source, loaders=loaders), dataset.train.rows))


@pytest.mark.own_cache
def test_measure_pixel_fit_decodes_images_once_for_all_conventions_and_runs(
    composed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run, reads = composed("data.classes=6", "preflight.images=20"), []
    dataset, backbone = counted(run.data.open(), reads), run.model.build(0)
    first = run.preflight.measure_pixel_fit(backbone, dataset, run.data, run.features.open_cache())
    assert len(set(reads)) == len(reads) == 20
    # A whole batch of 16, in each convention.
    assert [message.split(" in ")[0] for message in caplog.messages if message.startswith("preflight: ")] == [
        f"preflight: {16 * len(MODES)}"
    ]
    # The sample spans all classes.
    assert {name.split("/")[1] for name in reads} == set(dataset.class_names)
    again = run.preflight.measure_pixel_fit(backbone, dataset, run.data, run.features.open_cache())
    assert (again, len(reads)) == (first, 20)
    assert first.has_statistics
    assert first.best == "raw"
    for mode in MODES:
        assert [finding.certain for finding in check_pixels(first, mode, "raw")] == ([] if mode == "raw" else [True])
    other = replace(dataset, train=Split(dataset.train.source, dataset.train.rows[:60]))
    # Other images are measured anew.
    run.preflight.measure_pixel_fit(backbone, other, run.data, run.features.open_cache())
    assert len(reads) == 40
    assert (
        composed("preflight=none").preflight.measure_pixel_fit(backbone, dataset, run.data, run.features.open_cache())
        is None
    )


@pytest.mark.parametrize(
    ("architecture", "more", "native"),
    [("MobileNetV2", {"alpha": 0.35}, "tf"), pytest.param("ResNet50", {}, "caffe", marks=pytest.mark.slow)],
)
@pytest.mark.own_cache
def test_measure_pixel_fit_finds_the_convention_of_pretraining(
    composed, pretrained_backbone, architecture: str, more: dict, native: str
) -> None:
    run = composed("data.classes=6")
    backbone = Backbone(pretrained_backbone(architecture, native, **more), (), architecture)
    fit = run.preflight.measure_pixel_fit(backbone, run.data.open(), run.data, run.features.open_cache())
    assert fit.has_statistics
    assert fit.best == native
    assert fit.distances[native] < 0.05
    for mode in MODES:
        start = mismatch_start(mode, native)
        expected = [] if mode == native else [start]
        assert [finding.message[: len(start)] for finding in check_pixels(fit, mode, native)] == expected


def mismatch_start(mode: str, native: str) -> str:
    return (
        f"preprocessing.mode={mode} does not match the pretrained weights. BatchNorm's running statistics fit {native}"
        " pixels "
    )


def small_network(normalization: str):
    import keras

    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3))
    hidden = keras.layers.Conv2D(16, 4, 4)(keras.layers.Rescaling(1 / 127.5, -1)(images))
    hidden = getattr(keras.layers, normalization)()(hidden)
    return keras.Model(images, keras.layers.Conv2D(16, 2, activation="gelu")(hidden))


@pytest.mark.parametrize("normalization", ["LayerNormalization", "BatchNormalization"])
@pytest.mark.own_cache
def test_check_pixels_without_a_trained_batchnorm_compares_the_variance(composed, normalization: str) -> None:
    run = composed("data.classes=6")
    # BatchNorm has its initial statistics.
    backbone = Backbone(small_network(normalization), (), normalization)
    fit = run.preflight.measure_pixel_fit(backbone, run.data.open(), run.data, run.features.open_cache())
    assert not fit.has_statistics
    assert pixel_fit_line(fit, "raw").startswith(
        "pixels: no trained BatchNorm to check; relative variance between images by convention: "
    )
    assert check_pixels(fit, "raw", "raw") == []
    for mode in ("torch", "caffe", "tf", "unit"):
        (finding,) = check_pixels(fit, mode, "raw")
        assert "BatchNorm's running statistics" not in finding.message
        # Certain if the output is nearly the same for all images.
        assert finding.certain == (fit.distances[mode] > 0.9)
        assert three_sentences(finding.message)
    (finding,) = check_pixels(fit, "caffe", "raw")
    assert_finding(finding, "pixels", False, UNCHECKED)


@pytest.mark.long
def test_random_weights_are_trained_without_a_warning_about_pixels(
    composed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = composed("model.weights=null", "data.classes=6", "phase.epochs=1", "tracking=none")
    assert len(train(run, tmp_path).history.epochs) == 1
    assert any(message.startswith("pixels: no trained BatchNorm to check") for message in caplog.messages)
    assert not any(message.startswith("preflight: ") and "pixels" in message for message in caplog.messages)


# --- reading of labelled images -----------------------------------------------

LABELS = np.repeat(np.arange(5), 12)


def features(noise: float, seed: int = 0, labels: np.ndarray = LABELS) -> np.ndarray:
    """Return [n, 40] features that tell the classes apart as well as the noise allows."""
    rng = np.random.default_rng(seed)
    return (3 * np.eye(40)[labels] + rng.normal(0, noise, (len(labels), 40))).astype(np.float32)


def reading(thumbnail: float = 1e-9, **p_values: float) -> PixelReading:
    """Return a reading of these p-values; the convention with p = 1 is the best."""
    conventions = {
        mode: Reading(Proportion(30, 60), error=0.5 if p_value == 1 else 0.6, p_value=p_value)
        for mode, p_value in p_values.items()
    }
    return PixelReading(conventions, Reading(Proportion(20, 60), 0.7, thumbnail))


def test_read_pixels_finds_the_conventions_whose_features_are_worse_beyond_noise() -> None:
    given = {"raw": features(0.5, 1), "caffe": features(0.5, 2), "torch": features(1.5, 3), "tf": features(1e9, 4)}
    # Values that are not finite, as wrong pixels may give, are no more than bad features.
    given["unit"] = np.full_like(given["raw"], np.nan)
    found = read_pixels(given, features(4, 5), LABELS)
    assert found.can_tell
    assert found.best in {"raw", "caffe"}
    assert found.conventions[found.best].p_value == 1
    assert {mode: found.is_mismatch(mode) for mode in given} == {
        "raw": False,
        "caffe": False,
        "torch": True,
        "tf": True,
        "unit": True,
    }
    assert found.conventions["raw"].accuracy.n == 60
    assert found.conventions["raw"].accuracy.value > 0.9
    assert found.conventions["tf"].accuracy.value < 0.5
    assert found.metrics() == {f"probe_{mode}": each.accuracy.value for mode, each in found.conventions.items()}
    # What the cache stores gives the same.
    assert PixelReading.from_table(found.table(), tuple(given)) == found


def test_read_pixels_cannot_tell_if_thumbnails_of_the_pixels_are_as_good() -> None:
    given = {"raw": features(0.5, 1), "torch": features(3, 2)}
    found = read_pixels(given, features(0.5, 3), LABELS)
    assert found.conventions["torch"].p_value < 1e-6
    assert not found.can_tell
    assert not found.is_mismatch("torch")
    assert f"no better than thumbnails ({100 * found.thumbnail.accuracy.value:.0f} %)" in str(found)
    # Labels that have nothing to do with the images.
    noisy = read_pixels(given, features(4, 3), np.random.default_rng(0).permutation(LABELS))
    assert not noisy.can_tell


def test_read_pixels_scores_images_by_probes_that_have_not_seen_them() -> None:
    # More features than images: a probe that had seen an image would know its class.
    noise = np.random.default_rng(0).normal(size=(60, 500))
    found = read_pixels({"raw": noise, "tf": noise}, noise, LABELS)
    assert found.conventions["raw"].accuracy.value < 0.45
    assert found.conventions["tf"].p_value == 1


@pytest.mark.parametrize(
    ("counts", "images", "classes", "per_class"),
    [
        ([20] * 30, 64, 5, 12),
        ([20] * 30, 96, 8, 12),
        ([40, 40], 64, 2, 32),
        ([40] * 9, 31, 3, 10),
        ([6] * 30, 64, 5, 6),
        # Classes with fewer than four images are left out.
        ([3] * 10 + [12] * 3, 64, 3, 12),
        ([3] * 10 + [12], 64, None, None),
        ([20], 64, None, None),
        ([1] * 100, 64, None, None),
    ],
)
def test_choose_rows_takes_a_dozen_images_of_some_classes(
    counts: list[int], images: int, classes: int | None, per_class: int | None
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = 7 + np.arange(len(labels))
    chosen = choose_rows(labels, rows, images)
    if classes is None:
        assert chosen is None
        return
    assert np.array_equal(chosen, choose_rows(labels, rows, images))
    assert np.all(np.diff(chosen) > 0)
    assert len(chosen) <= images
    assert np.unique(labels[chosen - 7], return_counts=True)[1].tolist() == [per_class] * classes


def test_read_pixels_needs_two_classes_with_four_images() -> None:
    labels = np.array([0] * 8 + [1] * 3)
    assert read_pixels({"raw": features(1, labels=labels)}, features(1, labels=labels), labels) is None
    labels = np.array([0] * 8 + [1] * 3 + [2] * 4)
    found = read_pixels({"raw": features(1, labels=labels)}, features(1, labels=labels), labels)
    assert found.thumbnail.accuracy.n == 12


def test_thumbnails_are_means_of_a_grid() -> None:
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[1, :8, 8:16] = [1, 2, 3]
    found = thumbnails(images)
    assert found.shape == (2, 8 * 8 * 3)
    assert not found[0].any()
    assert found[1, 3:6] == pytest.approx([1, 2, 3])
    assert np.count_nonzero(found[1]) == 3


UNREAD = (
    "preprocessing.mode=torch does not match the pretrained weights.",
    "a linear probe reads 60 labelled images best with raw pixels (30 correct; torch: 30; p = 1e-05).",
)


@pytest.mark.parametrize(
    ("found", "mode", "native", "certain", "facts"),
    [
        (
            reading(raw=1, caffe=0.2, torch=1e-5),
            "torch",
            "raw",
            True,
            (*UNREAD, "Set preprocessing=native, or preflight=warn to train anyway."),
        ),
        # The config's convention is not the best, but no worse beyond noise.
        (reading(raw=1, caffe=0.2, torch=1e-5), "torch", "caffe", True, (*UNREAD, "Set preprocessing=native,")),
        # The config names the wrong convention.
        (reading(raw=1, caffe=0.2, torch=1e-5), "torch", "torch", True, (*UNREAD, "Set preprocessing=raw,")),
        (reading(raw=1, caffe=0.2, torch=1e-5), "raw", "torch", None, ()),
        (reading(raw=1, caffe=0.2, torch=1e-5), "raw", "raw", None, ()),
        (reading(raw=1, caffe=0.2, torch=1e-5), "caffe", "raw", False, UNCHECKED),
        # The features are no better than thumbnails: nothing can be told.
        (reading(0.2, raw=1, caffe=1e-5, torch=1e-5), "raw", "torch", False, ("raw", "torch")),
        (reading(0.2, raw=1, caffe=1e-5, torch=1e-5), "torch", "torch", None, ()),
        (reading(0.2, raw=1, caffe=1e-5, torch=1e-5), "caffe", "raw", False, UNCHECKED),
    ],
)
def test_check_pixels_without_batchnorm_reports_a_convention_that_is_read_worse(
    found: PixelReading, mode: str, native: str, certain: bool | None, facts: tuple[str, ...]
) -> None:
    fit = PixelFit(False, dict.fromkeys(MODES, 0.0), found)
    findings = check_pixels(fit, mode, native)
    assert len(findings) == (certain is not None)
    for finding in findings:
        assert_finding(finding, "pixels", certain, facts)
    assert pixel_fit_line(fit, mode).endswith(str(found))


@pytest.mark.long
@pytest.mark.own_cache
def test_wrong_pixels_of_a_backbone_without_batchnorm_are_refused(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # The miniature with its BatchNorm layers hidden from the check.
    monkeypatch.setattr("dogbreeds.training.pixel_fit.has_trained_statistics", lambda layer: False)
    with pytest.raises(UserError) as refusal:
        train(composed(*SMALL, "preprocessing=torch"), tmp_path)
    text = str(refusal.value)
    assert text.startswith("preprocessing.mode=torch does not match the pretrained weights. ")
    assert "reads 60 labelled images best with raw pixels" in text
    assert text.endswith("Set preprocessing=native, or preflight=warn to train anyway.")
    assert three_sentences(text)
    run = composed(*SMALL)
    # The same reading serves the other conventions.
    fit = run.preflight.measure_pixel_fit(run.model.build(0), run.data.open(), run.data, run.features.open_cache())
    assert [listed.name.split("-")[0] for listed in run.features.open_cache().entries()] == ["preflight"]
    assert check_pixels(fit, "raw", "raw") == []
    (finding,) = check_pixels(fit, "torch", "torch")
    assert "Set preprocessing=raw," in finding.message


@pytest.mark.long
@pytest.mark.own_cache
def test_wrong_pixels_of_a_backbone_without_batchnorm_are_recorded(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dogbreeds.training.pixel_fit.has_trained_statistics", lambda layer: False)
    run = composed(*SMALL, "preprocessing=torch", "preflight=warn")
    client, experiment = run.tracking.connect()
    train(run, tmp_path)
    fit = run.preflight.measure_pixel_fit(run.model.build(0), run.data.open(), run.data, run.features.open_cache())
    (warned,) = client.search_runs([experiment])
    assert warned.data.tags["preflight"].startswith("preprocessing.mode=torch does not match the pretrained weights. ")
    assert warned.data.metrics["preflight/probe_raw"] == fit.reading.conventions["raw"].accuracy.value > 0.9
    assert warned.data.metrics["preflight/torch"] == fit.distances["torch"]


def test_a_large_backbone_is_given_fewer_images(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    run, network = composed("data.classes=6"), small_network("LayerNormalization")
    # The kernels, [4, 4, 3, 16] at 8 × 8 positions and [2, 2, 16, 16] at 7 × 7.
    assert multiplications(network) == 4 * 4 * 3 * 16 * 8 * 8 + 2 * 2 * 16 * 16 * 7 * 7
    monkeypatch.setattr("dogbreeds.training.pixel_fit._MAX_MULTIPLICATIONS", 5 * 31 * multiplications(network))
    arguments = Backbone(network, (), "large"), run.data.open(), run.data, run.features.open_cache()
    assert run.preflight.measure_pixel_fit(*arguments).reading.thumbnail.accuracy.n == 30
    monkeypatch.setattr("dogbreeds.training.pixel_fit._MAX_MULTIPLICATIONS", 1)
    assert run.preflight.measure_pixel_fit(*arguments).reading.thumbnail.accuracy.n == 24


@pytest.mark.long
@pytest.mark.own_cache
def test_convnext_with_random_weights_cannot_tell_the_convention(composed) -> None:
    small = ("model.image_size=32", "data=miniature", "preflight.images=24")
    run = composed("model=convnext_tiny", "model.weights=null", *small)
    backbone = run.model.build(0)
    fit = run.preflight.measure_pixel_fit(backbone, run.data.open(), run.data, run.features.open_cache())
    assert fit.reading.thumbnail.accuracy.n == 24
    assert not fit.reading.can_tell
    assert "cannot tell the convention of pretraining" in pixel_fit_line(fit, "raw")
    assert check_pixels(fit, "raw", "raw") == []
    assert [finding.certain for finding in check_pixels(fit, "caffe", "raw")] == [False]


# --- data ---------------------------------------------------------------------


def test_duplicates_between_splits_are_refused_beyond_the_allowed_fraction(
    composed, write_images: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(train=6, test=3)
    settings = ("data=folder", f"data.root={root}", "data.val_fraction=0.34", "tracking=none")
    assert composed(*settings).preflight.check_data(composed(*settings).data.open()) == []
    shutil.copy(root / "train/breed_1/2.jpg", root / "test/breed_1/again.jpg")
    dataset = composed(*settings).data.open()
    row = dataset.train.source.ids.index("train/breed_1/2.jpg")
    split = "train" if row in dataset.train.rows else "val"
    facts = (
        f"1 of 10 images of test are also in {split}, such as test/breed_1/again.jpg = train/breed_1/2.jpg.",
        "preflight.max_duplicate_fraction allows 0.01 of them",
        "or set preflight=warn.",
    )
    (refused,) = composed(*settings).preflight.check_data(dataset)
    assert_finding(refused, "duplicates", True, facts)
    with pytest.raises(UserError) as refusal:
        train(composed(*settings), tmp_path)
    assert str(refusal.value) == refused.message
    allowed = composed(*settings, "preflight.max_duplicate_fraction=0.2").preflight
    found = allowed.check_data(dataset)
    assert found == [Finding("duplicates", False, refused.message.replace("0.01", "0.2"))]
    allowed.report(found)
    assert caplog.messages[-1] == f"preflight: {found[0].message}"
    # Exactly the allowed fraction.
    assert composed(*settings, "preflight.max_duplicate_fraction=0.1").preflight.check_data(dataset)[0].certain is False
    assert composed(*settings, "preflight=none").preflight.check_data(dataset) == []


def test_drawn_images_have_no_duplicates(composed) -> None:
    run = composed()
    assert run.preflight.check_data(run.data.open()) == []


def labelled(train: list[int], val: list[int], classes: int = 3) -> Dataset:
    def split(name: str, labels: list[int]) -> Split:
        ids = tuple(f"{name}/{number}" for number in range(len(labels)))
        source = Source(name, np.array(labels, dtype=np.int32), ids, ids, name, lambda: iter(()))
        return Split(source, np.arange(len(labels)))

    return Dataset("labelled", tuple("abcdef"[:classes]), split("train", train), split("val", val), None)


def test_check_data_counts_every_image_that_is_also_in_train(composed) -> None:
    dataset = labelled([0, 1, 2], [0, 0, 0, 1])
    source = replace(dataset.val.source, digests=("train/0", "train/0", "train/0", "new"))
    (found,) = composed("preflight.max_duplicate_fraction=0.5").preflight.check_data(
        replace(dataset, val=Split(source, dataset.val.rows))
    )
    assert found.certain
    assert found.message.startswith("3 of 4 images of val are also in train, such as val/0 = train/0. ")


def test_check_pixels_without_batchnorm_never_reports_the_native_convention() -> None:
    assert check_pixels(PixelFit(False, {"raw": 0.95, "torch": 0.0}), "raw", "raw") == []


@pytest.mark.parametrize(
    ("train", "val", "facts"),
    [
        ([0, 1, 2], [2, 0], None),
        ([0, 1, 3, 2], [0], ("train has an image with label 3.", "must be 0 to 2,", "Correct the labels")),
        ([0, 1, 2], [0, 17], ("val has an image with label 17.", "must be 0 to 2,", "Correct the labels")),
        ([0, 1, 2], [0, -1], ("val has an image with label -1.", "must be 0 to 2,", "Correct the labels")),
        ([0, 2], [1], ("1 of 3 classes have no training images (b).", "Add images, or remove the class.")),
        ([2], [2], ("2 of 3 classes have no training images (a, b).", "Add images, or remove the class.")),
    ],
)
def test_check_data_reports_labels_out_of_range_and_classes_without_training_images(
    composed, train: list[int], val: list[int], facts: tuple[str, ...] | None
) -> None:
    found = composed().preflight.check_data(labelled(train, val))
    assert len(found) == (facts is not None)
    for finding in found:
        assert_finding(finding, "labels", True, facts)
