"""Attempts with an injected fault, on drawn dogs, so that the right verdict follows from the change alone.

They go through all of an attempt, fine-tunes from a frozen parent among them; the random search is of frozen ones.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dogbreeds.core.spec import text
from dogbreeds.data import dataset, miniature
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.result import Result
from dogbreeds.experiments.run import Run
from dogbreeds.models import head
from dogbreeds.tracking.records import Parent, Record, RunOrigin
from dogbreeds.tracking.tracking import Tracker, Tracking

ORIGIN = RunOrigin("", (), "fault", Path())
SMALL = ("data.classes=60", "phase.epochs=8", "phase.patience_epochs=null")
TUNED = ("data.classes=40", "data.train_per_class=12", "data.test_per_class=25")


# --- injected faults ----------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeadHead(head.MLP):
    """A head whose ReLUs are all dead: their inputs are always negative."""

    def build(self, num_features: int, num_classes: int, seed: int):
        built = super().build(num_features, num_classes, seed)
        built.layers[0].bias.assign(built.layers[0].bias - 1e6)
        return built


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffledLabels(miniature.Miniature):
    """Synthetic dogs with the training labels permuted.

    Attributes:
        shuffle: seed of the permutation.
    """

    shuffle: int = 0

    def __post_init__(self) -> None:
        # The fields come from a spec that was checked already.
        pass

    def open(self) -> dataset.Dataset:
        opened = super().open()
        source = opened.train.source
        labels = np.random.default_rng(self.shuffle).permutation(source.labels)
        return dataclasses.replace(
            opened, train=dataset.Split(dataclasses.replace(source, labels=labels), opened.train.rows)
        )


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of attempt.

    Attributes:
        verdicts: the right verdicts.
        settings: draws overrides from a random generator.
        change: changes the run where no override can, given its seed.
        parent: overrides of the frozen attempt that a fine-tune starts from; None for a frozen attempt.
    """

    verdicts: tuple[str, ...]
    settings: Callable[[np.random.Generator], tuple[str, ...]]
    change: Callable[[Run, int], Run] = lambda run, seed: run
    parent: tuple[str, ...] | None = None


Change = Callable[[Run], Run]


def unchanged(run: Run) -> Run:
    """Return the run as it is."""
    return run


def _between(rng: np.random.Generator, low: float, high: float) -> str:
    """Draw a number log-uniformly, as text for an override."""
    return f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}"


KINDS: dict[str, Kind] = {
    "wrong pixels": Kind(
        ("never_learned",), lambda rng: (f"preprocessing={rng.choice(['torch', 'unit', 'tf'])}", "preflight=warn")
    ),
    "dead head": Kind(
        ("never_learned",), lambda rng: (), lambda run, seed: dataclasses.replace(run, head=_as(DeadHead, run.head))
    ),
    "shuffled labels": Kind(
        ("never_learned",),
        lambda rng: ("head.dropout=0", f"phase.epochs={rng.integers(8, 20)}"),
        lambda run, seed: dataclasses.replace(run, data=_as(ShuffledLabels, run.data, shuffle=seed)),
    ),
    "not a number": Kind(("diverged",), lambda rng: ("optimizer=sgd", f"optimizer.lr={_between(rng, 1e6, 1e30)}")),
    "fine-tune, tiny batches, BatchNorm trainable": Kind(
        ("worse_than_frozen",),
        lambda rng: (
            "phase.batch_size=2",
            f"optimizer.lr={_between(rng, 5e-4, 2e-3)}",
            "unfreeze.layers=50",
            "unfreeze.batchnorm=trainable",
            "phase.epochs=1",
        ),
        parent=("phase.epochs=10",),
    ),
    "fine-tune that changes nothing": Kind(
        ("no_better_than_frozen",),
        lambda rng: (f"optimizer.lr={_between(rng, 1e-8, 1e-6)}", "phase.epochs=2"),
        parent=("phase.epochs=10",),
    ),
    "fine-tune of an undertrained head": Kind(
        ("better_than_frozen",),
        lambda rng: (f"optimizer.lr={_between(rng, 3e-4, 1e-3)}", "phase.epochs=3"),
        parent=("phase.epochs=2", "optimizer.lr=3e-4"),
    ),
}


def _as(cls: type, spec: Any, **fields: Any) -> Any:
    """Copy a spec to a subclass, with further fields."""
    return cls(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}, **fields)


# --- attempts -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FolderTracking(Tracking):
    """Tracking in a folder: a frozen attempt's predictions and head, which a fine-tune needs."""

    folder: str = text(example="path/to/folder")

    @contextlib.contextmanager
    def open(self, origin: RunOrigin, unfinished: Record | None = None) -> Iterator[Tracker]:
        yield _FolderTracker(Path(self.folder))

    def find_parent(self, run_id: str | None, must_match: dict[str, Any], seed: int, folder: Path) -> Parent:
        with np.load(Path(self.folder) / "predictions.npz") as stored:
            predictions = {
                split: Predictions(*(stored[f"{split}_{array}"] for array in ("ids", "labels", "logits")))
                for split in ("val", "test")
            }
        return Parent("parent", Path(self.folder) / "head.weights.h5", 0.0, predictions)


class _FolderTracker(Tracker):
    def __init__(self, folder: Path):
        super().__init__("fault")
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}

    def predictions(self, split: str, predictions: Predictions) -> None:
        self._arrays |= {
            f"{split}_ids": np.asarray(predictions.ids),
            f"{split}_labels": predictions.labels,
            f"{split}_logits": predictions.logits,
        }

    def head(self, head) -> None:
        np.savez(self._folder / "predictions.npz", **self._arrays)  # type: ignore[arg-type]
        head.save_weights(self._folder / "head.weights.h5")


def attempt(name: str, seed: int, overrides: tuple[str, ...] = (), change: Change = unchanged) -> dict[str, Any]:
    """Run one attempt of a kind and return its verdict and curves.

    Args:
        name: key of `KINDS`.
        seed: seed of the attempt, and of the settings that its kind draws.
        overrides: settings that win over those of the kind, for the attempt and for its parent.
        change: changes both runs where no override can.
    """
    kind = KINDS[name]
    rng = np.random.default_rng([seed, list(KINDS).index(name)])
    with tempfile.TemporaryDirectory() as folder:
        if kind.parent is not None:
            _run(("phase=frozen", *TUNED, "phase.patience_epochs=null", *kind.parent, *overrides), seed, folder, change)
            settings = ("phase=finetune", *TUNED, "phase.patience_epochs=null", *kind.settings(rng), *overrides)
        else:
            settings = (*SMALL, *kind.settings(rng), *overrides)
        result = _run(settings, seed, folder, lambda run: kind.change(change(run), seed))
    curves = [dict(epoch.metrics(), n=epoch.val.accuracy.n) for epoch in result.history.epochs]
    return {
        "kind": name,
        "seed": seed,
        "settings": settings,
        "verdict": result.verdict.name,
        "reason": str(result.verdict),
        "numbers": result.verdict.numbers,
        "curves": curves,
    }


def _run(settings: tuple[str, ...], seed: int, folder: str, change: Callable[[Run], Run]) -> Result:
    """Run an attempt from its first epoch: its checkpoints are in `folder`, which has none of an earlier benchmark."""
    run = _composed(
        "tracking=none", "tracking.folder=null", f"seed={seed}", f"checkpoint_dir={folder}/checkpoints", *settings
    )
    result = execute(dataclasses.replace(change(run), tracking=_FolderTracking(folder=folder)), ORIGIN)
    assert isinstance(result, Result)
    return result


def _composed(*settings: str) -> Run:
    """Compose a run from the last setting of each key, since Hydra refuses two options of a group."""
    last = {setting.split("=")[0]: setting for setting in settings}
    return from_config(compose_config("train", list(last.values())))


# --- report -------------------------------------------------------------------


def kinds_table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return recall and precision of each verdict, with intervals, and every misjudged attempt."""
    lines = ["| verdict | recall | precision |", "| --- | --- | --- |"]
    for verdict in dict.fromkeys(KINDS[result["kind"]].verdicts[0] for result in results):
        relevant = [result for result in results if verdict in KINDS[result["kind"]].verdicts]
        num_given = sum(result["verdict"] == verdict for result in results)
        correct = sum(result["verdict"] == verdict for result in relevant)
        recall, precision = _fraction(correct, len(relevant)), _fraction(correct, num_given)
        lines.append(f"| {verdict.replace('_', ' ')} | {recall} | {precision} |")
    lines.append("")
    return lines + [
        f"- misjudged: {result['kind']}, seed {result['seed']} ({' '.join(result['settings'])}): {result['reason']}"
        for result in results
        if result["verdict"] not in KINDS[result["kind"]].verdicts
    ]


def _fraction(correct: int, n: int) -> str:
    if not n:
        return "–"
    low, high = Proportion(correct, n).interval
    return f"{correct / n:.2f} ({low:.2f}–{high:.2f}), {correct} of {n}"
