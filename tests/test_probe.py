"""Probing of backbones: names, the sample, what is stopped, what is cached and recorded, and the table."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.paths import home
from dogbreeds.data.dataset import Dataset, Source, Split
from dogbreeds.data.image import ImageLoader
from dogbreeds.data.subset import sample_dataset, with_own_sources
from dogbreeds.evaluation import backbone_probe as results
from dogbreeds.evaluation.backbone_probe import BackboneProbe, FailedBackbone, ProbedBackbone, ProbedImages
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import ZeroShotBaseline
from dogbreeds.experiments import backbone_probe
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.backbone_probe import probe_backbones
from dogbreeds.experiments.compose import compose_config, config_source
from dogbreeds.experiments.probe_models import Probe, ProbeModel, compose_models
from dogbreeds.experiments.probe_recording import recorded
from dogbreeds.experiments.run import Run
from dogbreeds.reports import probe_rendering
from dogbreeds.tracking.records import RunOrigin
from tests.test_reference import undocumented
from tests.tiers import tiered

FOLDER = ("data=folder", "data.root=photos")


def numbered_dataset(counts: tuple[int, ...], val: int = 0) -> tuple[Dataset, list[int]]:
    """Return a data set of images that are their numbers, and a list of those that were loaded.

    Args:
        counts: images of each class.
        val: images of each class in a validation source of its own; 0 holds a fifth out of the training images.
    """
    loaded: list[int] = []

    def source(name: str, labels: np.ndarray) -> Source:
        def load(number: int) -> np.ndarray:
            loaded.append(number)
            return np.full((1, 1, 3), number % 256, np.uint8)

        def loaders() -> Iterator[ImageLoader]:
            return (lambda number=number: load(number) for number in range(len(labels)))

        ids = tuple(f"{name}/{number}" for number in range(len(labels)))
        return Source(name, labels, ids, ids, name, loaders)

    labels = np.repeat(np.arange(len(counts)), counts)
    train = source("train", labels)
    rows = np.arange(len(labels))
    if val:
        own = source("val", np.repeat(np.arange(len(counts)), val))
        splits = Split(train, rows), Split(own, np.arange(len(own.labels)))
    else:
        splits = Split(train, rows[rows % 5 > 0]), Split(train, rows[rows % 5 == 0])
    names = tuple(f"class {label}" for label in range(len(counts)))
    return Dataset("numbers", names, *splits, test=Split(train, rows[:3])), loaded


# --- sample -------------------------------------------------------------------


def test_sample_has_each_class_in_its_proportion_and_no_test_images() -> None:
    dataset, _ = numbered_dataset((400, 200, 100))
    sample = sample_dataset(dataset, 140, seed=0)
    assert (len(sample.train.rows), len(sample.val.rows), sample.test) == (112, 28, None)
    assert np.abs(np.bincount(sample.train.labels) - [64, 32, 16]).max() <= 1
    assert np.abs(np.bincount(sample.val.labels) - [16, 8, 4]).max() <= 1
    assert set(sample.train.rows) <= set(dataset.train.rows)
    assert set(sample.val.rows) <= set(dataset.val.rows)
    same, other = (sample_dataset(dataset, 140, seed) for seed in (0, 1))
    assert same.fingerprint == sample.fingerprint != other.fingerprint


def test_sample_is_no_larger_than_the_data_and_has_an_image_of_each_split() -> None:
    dataset, _ = numbered_dataset((90, 10), val=1)
    assert len(sample_dataset(dataset, 1000, seed=0).train.rows) == 100
    assert len(sample_dataset(dataset, 20, seed=0).val.rows) == 1


@pytest.mark.parametrize("val", [0, 7], ids=["held out", "own source"])
def test_own_sources_have_the_images_of_the_splits_alone(val: int) -> None:
    dataset, loaded = numbered_dataset((60, 40), val)
    sample = sample_dataset(dataset, 20, seed=0)
    own = with_own_sources(sample)
    for name, split in sample.splits.items():
        assert [own.splits[name].source.ids[row] for row in own.splits[name].rows] == [
            split.source.ids[row] for row in split.rows
        ]
        assert own.splits[name].labels.tolist() == split.labels.tolist()
    # Held-out images lie in the source of the training images, which is decoded once.
    assert (own.train.source is own.val.source) == (val == 0)
    numbers = [int(load()[0, 0, 0]) for load in own.train.source.loaders()]
    assert numbers == loaded == [int(name.split("/")[1]) for name in own.train.source.ids]
    assert len(loaded) == (20 if val == 0 else len(sample.train.rows))
    assert own.train.source.fingerprint != dataset.train.source.fingerprint
    assert with_own_sources(sample).fingerprint == own.fingerprint


# --- names --------------------------------------------------------------------


WRONG_MODELS: list[Any] = [
    ((), FOLDER, "models was empty", r"Type 'models=\[effnetb0,mobilenetv2\]'"),
    ("effnetb0", FOLDER, "models was 'effnetb0'", "list of names"),
    (("effnetbo",), FOLDER, "models has 'effnetbo', which is not an option", r"Type 'models=\[effnetb0\]'"),
    (("effnetb0 seed=1",), FOLDER, "models has 'effnetb0 seed=1'", "settings of model, preprocessing and baseline"),
    (("model.alpha=1",), FOLDER, "models has 'model.alpha=1'", "must be an option"),
    (("effnetb0 'x",), FOLDER, "models has", "must be an option"),
    (("effnetb0",), (*FOLDER, "model=effnetb4"), "model=effnetb4 was given", r"Type 'models=\[effnetb4\]'"),
    # These compose a config or more.
    (("effnetb0 model.alpha=0.35",), FOLDER, r"\(Could not override 'model.alpha'\)", "its own"),
    (("effnetb0", "effnetb0"), FOLDER, "models has 'effnetb0' twice", "named once"),
    (("effnetb0", "effnetb0 model.image_size=224"), FOLDER, "settings that change nothing", "named once"),
    (("effnetb0",), (*FOLDER, "phase=finetune"), "phase was Finetune", "phase=frozen"),
    (("effnetb0",), (*FOLDER, "unfreeze=all"), "unfreeze All", "unfreeze=none"),
    (("effnetb0", "miniature"), (), "EfficientNetB0 and Miniature have different defaults", "Type data=folder"),
]


@pytest.mark.parametrize(
    ("models", "typed", "received", "fix"), tiered(WRONG_MODELS, first=WRONG_MODELS[:8], slow=WRONG_MODELS[8:])
)
def test_wrong_names_and_settings_are_refused(models: Any, typed: tuple[str, ...], received: str, fix: str) -> None:
    with pytest.raises(UserError, match=f"{received}.*{fix}"):
        compose_models(models, typed)


@pytest.mark.parametrize("images", [0, 49, "all"])
def test_a_sample_of_few_images_is_refused(images: object) -> None:
    with pytest.raises(UserError, match=rf"probe\.images was {images!r}.*or null"):
        Probe.of(compose_config("probe", [f"probe.images={images}"]))


def test_a_backbone_is_named_by_its_option_and_by_the_settings_that_distinguish_it() -> None:
    models = compose_models(
        [
            "effnetb0 model.weights=/a/b0.h5",
            "mobilenetv2 model.alpha=0.35 model.weights=/a/m.h5",
            "effnetv2b0 model.weights='/a b/one.h5'",
            "effnetv2b0 model.weights=/a/two.h5 preprocessing=torch",
            "effnetv2b0 model.weights=/a/three.h5",
        ],
        (*FOLDER, "model.image_size=96"),
    )
    assert [model.name for model in models] == [
        "effnetb0",
        "mobilenetv2 alpha=0.35",
        "effnetv2b0 weights=one.h5",
        "effnetv2b0 preprocessing=torch",
        "effnetv2b0 weights=three.h5",
    ]
    assert [model.run.model.weights for model in models[:3]] == ["/a/b0.h5", "/a/m.h5", "/a b/one.h5"]
    assert {model.run.model.image_size for model in models} == {96}
    assert models[3].run.preprocessing.mode == "torch"


def test_a_backbone_may_come_from_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(home() / "examples")
    sources = [config_source(home() / "examples/efficientnet_lite/conf")]
    typed = (*FOLDER, "plugins=[efficientnet_lite]")
    (model,) = compose_models(["efficientnet_lite1"], typed, sources)
    assert (model.name, model.run.model.architecture) == ("efficientnet_lite1", "EfficientNetLite1")


# --- results ------------------------------------------------------------------


def probed(name: str, correct: int, n: int = 400, speed: float = 50.0, **further: Any) -> ProbedBackbone:
    """Return results of a backbone that has the first images right."""
    images = ProbedImages(np.arange(n) < correct, np.arange(n) < correct - 10)
    settings = {"parameters": 4_000_000, "baseline": ZeroShotBaseline("not requested", 0)} | further
    return ProbedBackbone(
        name=name,
        architecture=name.title(),
        image_size=224,
        images_per_second=speed,
        strength=1e-3,
        method="ridge",
        splits={"val": images, "test": images},
        fingerprints={"model.fingerprint": name},
        **settings,
    )


@pytest.mark.parametrize(
    ("correct", "n", "stopped"),
    [
        # 12 of 400 images are 3 points: p = 2 ** -11.
        (300 - 12, 400, True),
        (300 - 11, 400, False),
        # Of 200 images, 6 are 3 points: p = 2 ** -5 is not significant.
        (150 - 6, 200, False),
        # Of 2,000 images, 2 points are significant.
        (1500 - 40, 2000, False),
    ],
)
def test_a_backbone_is_stopped_if_it_is_behind_significantly_and_by_three_points(
    correct: int, n: int, stopped: bool
) -> None:
    best = probed("best", 3 * n // 4, n)
    behind = results.clearly_behind([probed("other", correct, n), best])
    assert [each.probed.name for each in behind] == (["other"] if stopped else [])
    for each in behind:
        assert (each.best, each.pair.lost, each.pair.gained) == ("best", 3 * n // 4 - correct, 0)


def test_ranks_by_accuracy_then_by_speed_and_names_what_is_as_good() -> None:
    fast, slow = probed("fast", 300, speed=90), probed("slow", 300, speed=10)
    near, far = probed("near", 295), probed("far", 250)
    ranked = results.ranked([far, slow, near, fast])
    assert [each.name for each in ranked] == ["fast", "slow", "near", "far"]
    probe = BackboneProbe("photos", 3, 0, {"train": 800, "val": 400, "test": 400}, tuple(ranked))
    assert [each.name for each in probe.as_good] == ["slow", "near"]
    assert (probe.best.linear, probe.best.reference) == (Proportion(300, 400), Proportion(290, 400))
    assert probe.best.megabytes == 16
    metrics = probe.best.metrics()
    assert metrics["probe/test_accuracy"] == 0.75
    assert metrics["probe/val_reference_accuracy"] == 0.725
    assert (metrics["probe/test_accuracy_low"], metrics["probe/test_accuracy_high"]) == Proportion(300, 400).interval
    assert metrics["probe/test_n"] == 400


# --- table --------------------------------------------------------------------

BASELINE = ZeroShotBaseline("zero training", 3, {"val": Proportion(340, 400), "test": Proportion(345, 400)})
TABLE = BackboneProbe(
    "photos",
    3,
    3,
    {"train": 800, "val": 400, "test": 400},
    (probed("efficientnet_lite0", 350, baseline=BASELINE), probed("effnetb0", 345, speed=80.4)),
    results.clearly_behind([probed("effnetb0", 120, 160), probed("mobilenetv2 alpha=0.35", 90, 160)]),
    (FailedBackbone("resnet50", "Its weights are <missing>. They must be there. Type model.weights=<file>."),),
)


def test_table_fits_80_columns_and_is_plain_without_a_terminal() -> None:
    text = probe_rendering.as_text(TABLE, 80)
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 80
    assert "stopped, n = 160" in text
    # No name is broken.
    assert all(name in text for name in ("efficientnet_lite0 ", "mobilenetv2 alpha=0.35 "))
    plain = probe_rendering.as_text(TABLE, None)
    assert "\x1b" not in plain
    (row,) = (line for line in plain.splitlines() if line.strip().startswith("efficientnet_lite0  "))
    assert re.split(r" {2,}", row.strip()) == [
        "efficientnet_lite0",
        "87.5 % (83.9–90.4)",
        "85.0 % (81.2–88.2)",
        "86.2 % (82.5–89.3)",
        "400",
        "50",
        "4.0 M",
        "16",
        "measured",
    ]
    assert "efficientnet_lite0 is best, and effnetb0 is not significantly below it" in plain
    assert "The fastest of them is effnetb0." in plain
    assert "-18.8 points" in plain
    assert TABLE.failed[0].reason in plain


def test_markdown_csv_and_page_have_every_backbone() -> None:
    markdown = probe_rendering.as_markdown(TABLE)
    rows = [line for line in markdown.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        "efficientnet_lite0",
        "effnetb0",
        "mobilenetv2 alpha=0.35",
        "resnet50",
    ]
    first, _, stopped, failed = csv.DictReader(io.StringIO(probe_rendering.as_csv(TABLE)))
    assert (first["linear_probe"], first["zero_shot"], first["n"]) == ("0.875000", "0.862500", "400")
    assert (stopped["status"], stopped["split"], stopped["n"]) == ("stopped", "test", "160")
    assert (failed["status"], failed["reason"]) == ("failed", TABLE.failed[0].reason)
    page = probe_rendering.as_html(TABLE)
    assert "<svg" in page
    assert "Its weights are &lt;missing&gt;" in page
    assert not re.search(r"<script|src=\"http|<link", page)


def test_table_hides_columns_that_say_nothing() -> None:
    alone = BackboneProbe("photos", 3, 0, {"train": 80, "val": 400}, (probed("effnetb0", 300),))
    heading = probe_rendering.as_markdown(alone).splitlines()[2]
    assert "zero-shot" not in heading
    assert "status" not in heading
    assert "nothing to compare it with" in probe_rendering.as_text(alone, None)


# --- probing ------------------------------------------------------------------


@pytest.fixture
def models(composed: Callable[..., Run]) -> Callable[..., list[ProbeModel]]:
    """A function that composes backbones of the test's own store and cache."""
    run = composed("data.classes=6")
    typed = (
        "data.classes=6",
        "preflight.images=8",
        f"features.dir={run.features.dir}",
        f"tracking.uri={run.tracking.uri}",  # type: ignore[attr-defined]
        f"tracking.artifacts={run.tracking.artifacts}",  # type: ignore[attr-defined]
        "tracking.system_metrics_seconds=0",
    )
    return lambda *names, more=(): compose_models(names, (*typed, *more))


def counted(dataset: Dataset) -> tuple[Dataset, list[str]]:
    """Return a data set and a list of the sources of images that were decoded."""
    decoded: list[str] = []

    def source(split: Split) -> Split:
        def load(loader: ImageLoader) -> np.ndarray:
            decoded.append(split.source.name)
            return loader()

        def loaders() -> Iterator[ImageLoader]:
            return ((lambda loader=loader: load(loader)) for loader in split.source.loaders())

        return Split(dataclasses.replace(split.source, loaders=loaders), split.rows)

    splits = {name: source(split) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, **splits), decoded


@pytest.mark.own_cache
@pytest.mark.slow
def test_probe_stops_on_a_sample_and_does_not_decode_all_images_for_it(
    models: Callable[..., list[ProbeModel]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("miniature", "miniature model.weights=null", f"miniature model.weights={tmp_path}/none.h5")
    named = models(*names, more=("preflight=none",))
    dataset, decoded = counted(named[0].run.data.open())
    sizes = {name: len(split.rows) for name, split in dataset.splits.items()}
    seen: list[int] = []
    measure = backbone_probe._probe

    def probe(*arguments: Any) -> ProbedBackbone:
        before = len(decoded)
        found = measure(*arguments)
        seen.append(len(decoded) - before)
        return found

    monkeypatch.setattr(backbone_probe, "_probe", probe)
    found = probe_backbones(named, 100, dataset)
    # The second backbone reads the sample's cached images. Only the first sees all images.
    assert seen == [100, 0, sum(sizes.values())]
    assert [each.name for each in found.measured] == ["miniature"]
    best = found.best
    assert (best.split, best.linear.n, best.reference.n) == ("test", sizes["test"], sizes["test"])
    assert best.linear.value > 0.9
    assert best.images_per_second > 1
    assert 700_000 < best.parameters < 1_000_000
    (stopped,) = found.stopped
    assert (stopped.probed.name, stopped.probed.split) == ("miniature weights=null", "val")
    assert stopped.pair.n == stopped.probed.linear.n == round(100 * sizes["val"] / (sizes["train"] + sizes["val"]))
    (failed,) = found.failed
    assert failed.name == "miniature weights=none.h5"
    assert failed.reason.startswith(f"model.weights={tmp_path}/none.h5 is not a file")


@pytest.mark.own_cache
@pytest.mark.long
def test_a_second_probe_and_a_run_that_follows_compute_no_features(
    models: Callable[..., list[ProbeModel]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    composed: Callable[..., Run],
) -> None:
    named = models("miniature", "miniature model.weights=null", "miniature preprocessing=torch")
    dataset, decoded = counted(named[0].run.data.open())
    found = probe_backbones(named, 100, dataset)
    (failed,) = found.failed
    assert failed.name == "miniature preprocessing=torch"
    assert failed.reason.startswith("preprocessing.mode=torch does not match the pretrained weights")

    entries = {path.name for path in (tmp_path / "cache").glob("features-*")}
    run = composed("data.classes=6", "phase.epochs=1", "tracking=none")
    result = execute(run, RunOrigin("", (), "a run", tmp_path))
    assert {path.name for path in (tmp_path / "cache").glob("features-*")} == entries
    # The two probes are one.
    assert result.reference.comparisons["test"].probe == found.best.reference

    # A second call reads everything from the cache; the best one's sample has other features by now.
    decoded.clear()
    monkeypatch.setattr(backbone_probe, "fit_tuned", None)
    monkeypatch.setattr("dogbreeds.models.network.compile_inference", None)
    again = probe_backbones(named, 100, dataset)
    assert decoded == []
    assert again.best.metrics() == found.best.metrics()
    assert again.stopped[0].pair == found.stopped[0].pair


@pytest.mark.slow
def test_probe_is_recorded_and_never_taken_for_an_attempt(
    models: Callable[..., list[ProbeModel]], tmp_path: Path, composed: Callable[..., Run]
) -> None:
    named = models("miniature", f"miniature model.weights={tmp_path}/none.h5", more=("model.image_size=64",))
    with recorded(named, RunOrigin("seed: 0\n", (), "probe", None)) as record:
        found = probe_backbones(named, None)
        record(found)
    tracking: Any = named[0].run.tracking
    client, experiment = tracking.connect()
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"probe", "probe miniature", "probe miniature weights=none.h5"}
    parent = runs.pop("probe")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.data.tags["probe"] for run in runs.values()} == {"measured", "failed"}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    measured = runs["probe miniature"].data
    assert measured.metrics["probe/test_accuracy"] == found.best.linear.value
    assert measured.params["model.architecture"] == "Miniature"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"config", "probe.md", "probe.html"}
    # Tables, `run=best` and `latest` read these.
    assert tracking.records() == []
    with pytest.raises(UserError, match="No finished frozen run"):
        tracking.find_parent(None, {}, 0, tmp_path)
    every = [parent, *runs.values()]
    assert undocumented("Metrics", {name for run in every for name in run.data.metrics}) == []
    assert undocumented("Parameters", {name for run in every for name in run.data.params}) == []
    tags = {name for run in every for name in run.data.tags if not name.startswith("mlflow.")}
    assert undocumented("Tags", tags) == []


def test_probe_fails_if_no_backbone_is_left(models: Callable[..., list[ProbeModel]], tmp_path: Path) -> None:
    one = models(f"miniature model.weights={tmp_path}/none.h5")
    with pytest.raises((UserError, MissingFileError), match=r"none\.h5 is not a file.*Type model\.weights"):
        probe_backbones(one, None)
    two = models(f"miniature model.weights={tmp_path}/none.h5", f"miniature model.weights={tmp_path}/other.h5")
    with pytest.raises(UserError, match=r"^No backbone can be probed\. .*none\.h5 is not a file"):
        probe_backbones(two, None)


def test_probe_needs_validation_images(models: Callable[..., list[ProbeModel]]) -> None:
    (model,) = models("miniature")
    dataset = model.run.data.open()
    without = dataclasses.replace(dataset, val=Split(dataset.val.source, np.empty(0, int)))
    with pytest.raises(UserError, match=r"has no validation images.*Type|data\.val_fraction"):
        probe_backbones([model], None, without)
