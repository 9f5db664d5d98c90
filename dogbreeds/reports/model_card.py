"""What goes with a network that is handed over: what it is, how good it is, what to be careful of, how to ask it."""

from collections.abc import Mapping, Sequence

from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.results import Predictions
from dogbreeds.reports import baseline_note
from dogbreeds.tracking.records import Record

_IMAGENET = (
    "Weights that descend from ImageNet have seen photos of Stanford Dogs before, which is drawn from it: accuracies on"
    " that data flatter them, and say little about photos from elsewhere."
)
_DRAWN = "The photos are drawn, and so were those that its backbone learned from: it knows no real dogs."


def card(
    title: str,
    record: Record | None,
    said: Mapping[str, Predictions],
    class_names: Sequence[str],
    size: int,
    resize: str,
    usages: Mapping[str, str],
) -> str:
    """A README in Markdown.

    Args:
        title: the network in a few words.
        record: the attempt that trained it; None for a saved file.
        said: the attempt's predictions, by split.
        class_names: in the order of the probabilities.
        size, resize: what it does with a photo first.
        usages: Python that asks the network, for each format that is there.
    """
    parts = [
        f"# {title}",
        (
            "Takes photos as RGB, `[b, h, w, 3]` uint8 of any size, and gives `probabilities`, `[b, classes]` float32,"
            f" and `breed`, the likeliest. It resizes to {size} x {size} pixels ({resize}) and normalises by itself:"
            " hand it pixels as they were decoded, upright."
        ),
        (
            f"It knows {len(class_names)} breeds, in the order of `breeds.txt`, and answers with one of them whatever"
            " the photo shows."
        ),
        "## How good it is",
        *_measured(record, said),
        "## How to ask it",
        "```python\n" + _PHOTOS + "\n```",
        *(f"**{name}**\n\n```python\n{usage}\n```" for name, usage in usages.items()),
    ]
    return "\n\n".join(parts) + "\n"


_PHOTOS = """import numpy as np
from PIL import Image, ImageOps
photos = np.asarray(ImageOps.exif_transpose(Image.open("dog.jpg")).convert("RGB"))[None]"""


def _measured(record: Record | None, said: Mapping[str, Predictions]) -> list[str]:
    if record is None:
        return ["That is not known: it was exported from a file, which does not say.", _IMAGENET]
    splits = {"test": "test photos", "val": "validation photos, on which the best epoch was chosen"}
    lines = [
        f"- {score(said[split].logits, said[split].labels).accuracy} on {words}"
        for split, words in splits.items()
        if split in said
    ]
    data = record.params["data.name"]
    origin = (
        f"MLflow run `{record.run_id}`, {record.params['model.architecture']} trained on `{data}`"
        f" ({record.params['data.photos.train']} photos)."
    )
    zero = [
        baseline_note.said(record, split, len(said[split].ids))
        for split in splits
        if split in said and baseline_note.is_descended(record)
    ][:1]
    return ["\n".join(lines), *zero, origin, _DRAWN if record.params["data"] == "Miniature" else _IMAGENET]
