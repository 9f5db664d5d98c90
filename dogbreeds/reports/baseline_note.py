"""What reports say of the zero-shot baseline."""

from collections.abc import Sequence

from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import _HOLDS, _MEASURED, _SPLITS
from dogbreeds.tracking.records import Record

# --- of recorded attempts ---------------------------------------------------------------------------------------------


def said(record: Record, split: str, n: int) -> str:
    """What an attempt's result on a split must be held against, in a sentence or two.

    Args:
        record: the attempt.
        split: `val` or `test`; for other photos nothing is recorded.
        n: photos of the split.
    """
    holds = (
        f" {_HOLDS}: weights pretrained on it have seen them, which flatters every result on them."
        if is_descended(record)
        else ""
    )
    name, why = f"baseline/{split}_accuracy", record.tags.get("baseline", "")
    if name in record.metrics:
        accuracy = Proportion(round(record.metrics[name] * n), n)
        return (
            f"Zero training: the backbone's own 1000-way top gets {accuracy} on {_SPLITS[split]}, by its outputs for"
            f" these breeds.{holds}"
        )
    if why.startswith(_MEASURED):
        return f"The zero-training baseline was not measured on these photos.{holds}"
    return f"No zero-training baseline: {why}.{holds}" if why else f"No zero-training baseline was recorded.{holds}"


def is_descended(record: Record) -> bool:
    """Whether its photos' classes are ImageNet's, as far as that was recorded."""
    return (
        record.params.get("data.name", "").startswith("stanford_dogs")
        or int(record.tags.get("data.imagenet_classes", 0)) > 0
    )


def note(records: Sequence[Record]) -> list[str]:
    """The baseline of attempts on the same model and photos, once, on validation; empty where there is no attempt.

    Args:
        records: of which one may lack what another has.
    """
    ranked = sorted(
        records, key=lambda record: ("baseline/val_accuracy" not in record.metrics, "baseline" not in record.tags)
    )
    return [said(record, "val", int(record.params["data.photos.val"])) for record in ranked[:1]]
