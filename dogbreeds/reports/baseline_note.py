"""Sentences on the zero-shot baseline, for reports."""

from collections.abc import Sequence

from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import IMAGENET_OVERLAP, MEASURED_BASELINE_PREFIX, SPLIT_NAMES
from dogbreeds.tracking.records import Record


def describe(record: Record, split: str, n: int) -> str:
    """Describe the zero-shot baseline to compare a run's result on a split with, in one or two sentences.

    Args:
        record: the run.
        split: `val` or `test`. No baseline is recorded for other images.
        n: number of images in the split.
    """
    overlap = (
        f" {IMAGENET_OVERLAP}: pretrained weights have already seen them, so every result on them is optimistic."
        if overlaps_imagenet(record)
        else ""
    )
    metric = f"baseline/{split}_accuracy"
    if metric in record.metrics:
        accuracy = Proportion(round(record.metrics[metric] * n), n)
        return (
            f"Zero-shot baseline: without training, the backbone's own 1000-class top reaches {accuracy} on"
            f" {SPLIT_NAMES[split]}, with its outputs for these classes.{overlap}"
        )
    status = record.tags.get("baseline", "")
    if status.startswith(MEASURED_BASELINE_PREFIX):
        return f"The zero-shot baseline was not measured on these images.{overlap}"
    return f"No zero-shot baseline: {status}.{overlap}" if status else f"No zero-shot baseline was recorded.{overlap}"


def overlaps_imagenet(record: Record) -> bool:
    """Tell whether the run's images may be among ImageNet's, as far as that was recorded."""
    return (
        record.params.get("data.name", "").startswith("stanford_dogs")
        or int(record.tags.get("data.imagenet_classes", 0)) > 0
    )


def notes(records: Sequence[Record]) -> list[str]:
    """Describe the validation baseline of runs on the same model and images, once.

    Args:
        records: the runs. The baseline may be recorded for some of them only.

    Returns:
        One sentence or two in a list; empty if there are no runs.
    """
    ranked = sorted(
        records, key=lambda record: ("baseline/val_accuracy" not in record.metrics, "baseline" not in record.tags)
    )
    return [describe(record, "val", int(record.params["data.images.val"])) for record in ranked[:1]]
