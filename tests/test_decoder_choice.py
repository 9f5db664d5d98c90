"""Which decoder a run has, where that is recorded, and that everything that is done with the run has the same."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from dogbreeds.data import drawn_dogs
from dogbreeds.data.dataset import Dataset
from dogbreeds.data.decoder import PILLOW, PILLOW_SCALED, TENSORFLOW
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.automatic_settings import resolve
from dogbreeds.experiments.network_evaluation import evaluate_network
from dogbreeds.experiments.recorded_runs import Only, evaluation_set_of_run, open_network
from dogbreeds.experiments.run import Run
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import DecodedImages
from dogbreeds.tracking.records import Record, RunOrigin
from dogbreeds.tracking.saved_run import Nothing
from dogbreeds.training.checkpoint import Checkpoints

SMALL = ("data.classes=3", "data.train_per_class=4", "data.val_per_class=1", "data.test_per_class=1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(Nothing):
    """Tracking that knows runs by their identities, and the decoder of a parent."""

    started: tuple[tuple[str, float], ...] = dataclasses.field(default=(), metadata={"check": lambda key, value: value})
    parent: str = dataclasses.field(default=TENSORFLOW, metadata={"check": lambda key, value: value})

    def newest_run(self, identity: str) -> Record | None:
        started = dict(self.started).get(identity)
        return None if started is None else Record("id", "name", started, "FINISHED", {}, {}, {})

    def parent_params(self, run_id, must_match, seed) -> dict[str, str]:
        assert "data.decoder" not in must_match
        return {"data.decoder": self.parent}


@pytest.fixture
def run(composed: Callable[..., Run]) -> Run:
    return composed(*SMALL, "tracking=none")


@pytest.fixture
def dataset(run: Run) -> Dataset:
    return run.data.open()


@pytest.fixture(autouse=True)
def _release():
    yield
    FeatureCache.release()


def with_setting(run: Run, decoder: str) -> Run:
    return dataclasses.replace(run, data=dataclasses.replace(run.data, decoder=decoder))


def decode_all(run: Run, dataset: Dataset, decoder: str) -> None:
    """Cache the training images as a decoder decodes them."""
    images = DecodedImages(
        dataset.train.source, with_setting(run, decoder).data, run.model.image_size, run.features.open_cache()
    )
    images.rows()


def chosen(run: Run, dataset: Dataset, looks_up_runs: bool = True) -> str:
    return resolve(run, dataset, looks_up_runs)[0].data.decoder


def test_implied_decoder_leaves_identities_of_earlier_versions_alone(run: Run, dataset: Dataset) -> None:
    def identity(decoder: str) -> dict:
        return DecodedImages(
            dataset.train.source, with_setting(run, decoder).data, 64, run.features.open_cache()
        ).identity

    former = {"photos": dataset.train.source.fingerprint, "size": 64, "resize": "stretch"}
    assert identity(TENSORFLOW) == former
    assert identity(PILLOW) == former | {"decoder": "pillow"}
    assert identity(PILLOW_SCALED) == former | {"decoder": "pillow_scaled"}
    # `auto` is decided before a run has an identity.
    assert run.key == with_setting(run, TENSORFLOW).key
    for digest in (lambda run: run.key, lambda run: run.identity("f")):
        assert len({digest(with_setting(run, each)) for each in (PILLOW, PILLOW_SCALED, TENSORFLOW)}) == 3


@pytest.mark.own_cache
def test_auto_prefers_cached_images_and_says_so(run: Run, dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert chosen(run, dataset) == PILLOW
    decode_all(run, dataset, PILLOW_SCALED)
    assert (chosen(run, dataset), caplog.messages) == (PILLOW, [])
    decode_all(run, dataset, TENSORFLOW)
    assert chosen(run, dataset) == TENSORFLOW
    (line,) = caplog.messages
    assert "decoder tensorflow" in line
    assert "data.decoder=pillow" in line
    decode_all(run, dataset, PILLOW)
    assert chosen(run, dataset) == PILLOW


@pytest.mark.own_cache
def test_images_of_another_decoder_are_named_and_not_used(
    run: Run, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    decode_all(run, dataset, TENSORFLOW)
    caplog.clear()
    assert chosen(with_setting(run, PILLOW), dataset) == PILLOW
    (line,) = caplog.messages
    assert "decoder tensorflow are not used" in line
    decode_all(run, dataset, PILLOW)
    caplog.clear()
    assert chosen(with_setting(run, PILLOW), dataset) == PILLOW
    assert caplog.messages == []


@pytest.mark.own_cache
def test_auto_is_the_decoder_of_the_run_that_was_started_last(run: Run, dataset: Dataset) -> None:
    def identity(decoder: str) -> str:
        return with_setting(run, decoder).identity(dataset.fingerprint)

    earlier = dataclasses.replace(run, tracking=Recorded(folder=None, started=((identity(TENSORFLOW), 1.0),)))
    assert chosen(earlier, dataset) == TENSORFLOW
    assert chosen(earlier, dataset, looks_up_runs=False) == PILLOW
    assert chosen(dataclasses.replace(earlier, rerun=True), dataset) == PILLOW
    later = (*earlier.tracking.started, (identity(PILLOW), 2.0))
    assert chosen(dataclasses.replace(run, tracking=Recorded(folder=None, started=later)), dataset) == PILLOW
    # Scaled decodes are only taken where they were asked for.
    assert chosen(with_setting(run, PILLOW_SCALED), dataset) == PILLOW_SCALED
    # Without a record, a checkpoint is the only trace.
    Checkpoints(Path(run.checkpoint_dir) / identity(TENSORFLOW)).save({}, {"weights": np.zeros(1)})
    assert chosen(run, dataset) == TENSORFLOW


@pytest.mark.own_cache
def test_auto_takes_the_decoder_of_a_fine_tune_s_parent(composed: Callable[..., Run], dataset: Dataset) -> None:
    tuned = composed(*SMALL, "tracking=none", "phase=finetune")
    decode_all(tuned, dataset, PILLOW)
    # Without a parent the cached images decide; that the parent is missing is an error later.
    assert chosen(tuned, dataset) == PILLOW
    for parent in (TENSORFLOW, PILLOW_SCALED):
        recorded = dataclasses.replace(tuned, tracking=Recorded(folder=None, parent=parent))
        assert chosen(recorded, dataset) == parent


# --- through runs -------------------------------------------------------------

# Largest difference of a probability that the decoder may cause, as docs/pages/concepts/decoding.md states it.
ALLOWANCE = 0.05


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, composed_in) -> Callable[..., tuple[Run, str]]:
    """A function that trains on images of 80 x 90 px, in one store, and returns the run and its id."""
    folder = tmp_path_factory.mktemp("decoders")
    for split, count in {"train": 12, "test": 8}.items():
        for label in range(6):
            place = folder / f"photos/{split}/class_{label}"
            place.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(drawn_dogs.draw(split, label, number))
                image.resize((90, 80), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=92)
    composed = composed_in(folder, folder / "cache")

    def train(*overrides: str) -> tuple[Run, str]:
        run = composed(
            "data=folder",
            f"data.root={folder}/photos",
            "phase.epochs=3",
            "tracking.system_metrics_seconds=0",
            "preflight=none",
            "head=linear",
            *overrides,
        )
        data = {"_target_": "dogbreeds.data.folder.Folder", **dataclasses.asdict(run.data)}
        yaml = OmegaConf.to_yaml(OmegaConf.create({"data": data}))
        return run, execute(run, RunOrigin(yaml, overrides, "decoders", folder)).run_id

    return train


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [PILLOW, pytest.param(TENSORFLOW, marks=pytest.mark.long)])
def test_a_run_is_evaluated_with_its_own_decoder(trained, decoder: str) -> None:
    run, run_id = trained(f"data.decoder={decoder}")
    record = run.tracking.record(run_id)
    assert record.params["data.decoder"] == decoder
    recorded: dict[str, Predictions] = run.tracking.predictions(run_id)
    with open_network(run.tracking, run_id, Only(model=None, data=None)) as (_, classifier, file):
        assert classifier.decoder == decoder
        images = evaluation_set_of_run(run.tracking, record, "test", None, classifier, run.features.open_cache())
        # Refuses a network whose probabilities differ by more than 1e-4.
        measured = evaluate_network(
            classifier, images, record=record, file=file, run_predictions=recorded, views=3, seed=0
        )
        difference = recorded["test"].largest_difference(images.ids, measured.logits)
        assert difference is not None
        assert difference < 1e-5
        # The saved network resizes by itself.
        pixels = np.stack([load() for load in run.data.open().test.source.loaders()])
        by_network = classifier.model(pixels)["probabilities"].numpy()
    by_decoder = probabilities(measured.logits)
    assert len(by_decoder) == 48
    assert np.abs(by_network - by_decoder).max() <= (1e-4 if decoder == TENSORFLOW else ALLOWANCE)
    assert (by_network.argmax(axis=1) == by_decoder.argmax(axis=1)).all()


@pytest.mark.long
def test_a_fine_tune_inherits_the_decoder_of_its_parent(trained) -> None:
    for decoder in (TENSORFLOW, PILLOW):
        _, frozen_id = trained(f"data.decoder={decoder}")
        # The second time, the images of both decoders are cached.
        tuned, tuned_id = trained("phase=finetune", "phase.epochs=1", f"phase.parent={frozen_id}", "unfreeze.layers=16")
        assert tuned.data.decoder == "auto"
        assert tuned.tracking.record(tuned_id).params["data.decoder"] == decoder
