"""Model card of an exported network: README.md with its inputs, outputs, accuracy, limits and usage."""

from collections.abc import Mapping, Sequence

from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.results import Predictions
from dogbreeds.reports import baseline_note
from dogbreeds.tracking.records import Record

_IMAGENET_LIMIT = (
    "Stanford Dogs is part of ImageNet, so weights pretrained on ImageNet have seen its images. As far as those of"
    " `{data}` are among them, the accuracy is optimistic and predicts little about images from elsewhere."
)
_UNKNOWN = (
    "Unknown: the network was exported from a file, which does not record its accuracy. `python -m dogbreeds.evaluate"
    " run=<the file> images=<a folder of labelled images>` measures it."
)
_NOT_MEASURED = (
    "Not measured: the network was fitted to the validation images too, and the data have no test images. The run's"
    " validation accuracy is that of the network before."
)
_DRAWN_LIMIT = (
    "The images are drawn by a program, and so are those that the backbone was pretrained on. The network has seen no"
    " real dogs."
)


def model_card(
    title: str,
    record: Record | None,
    predictions: Mapping[str, Predictions],
    class_names: Sequence[str],
    image_size: int,
    resize: str,
    usages: Mapping[str, str],
) -> str:
    """Render the model card in Markdown.

    Args:
        title: short name of the network.
        record: the run that trained it; None for a network file of unknown origin.
        predictions: the run's recorded predictions, by split.
        class_names: in the order of the probabilities.
        image_size: side length in pixels that the network resizes images to.
        resize: how the network resizes images.
        usages: Python code that runs the network, by name of each exported format.
    """
    parts = [
        f"# {title}",
        (
            "Input: `image`, RGB images, `[b, h, w, 3]` uint8, of any size. Outputs: `probabilities`, `[b, classes]`"
            f" float32, and `class`, the most probable class. The network resizes images to {image_size} x"
            f" {image_size} pixels ({resize}) and normalises them itself: pass decoded pixels, rotated upright."
        ),
        (
            f"It distinguishes {len(class_names)} classes, listed in order in `classes.txt`, and predicts one of them"
            " whatever the image shows."
        ),
        "## Accuracy",
        *_accuracy(record, predictions),
        "## Usage",
        "```python\n" + _LOAD_IMAGES + "\n```",
        *(f"**{name}**\n\n```python\n{usage}\n```" for name, usage in usages.items()),
    ]
    return "\n\n".join(parts) + "\n"


# The exporter's usage examples read the variable `images`.
_LOAD_IMAGES = """import numpy as np
from PIL import Image, ImageOps
images = np.asarray(ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB"))[None]"""


def _accuracy(record: Record | None, predictions: Mapping[str, Predictions]) -> list[str]:
    if record is None:
        return [_UNKNOWN]
    splits = {"test": "test images", "val": "validation images, on which the best epoch was chosen"}
    recorded = [split for split in splits if split in predictions]
    unmeasured = [_NOT_MEASURED] if not recorded else []
    lines = unmeasured + [
        f"- {score(predictions[split].logits, predictions[split].labels).accuracy} on {splits[split]}"
        for split in recorded
    ]
    origin = (
        f"MLflow run `{record.run_id}`, {record.params['model.architecture']} trained on `{record.params['data.name']}`"
        f" ({record.params['data.images.train']} images)."
    )
    baseline = (
        [baseline_note.describe(record, split, len(predictions[split].ids)) for split in recorded[:1]]
        if baseline_note.overlaps_imagenet(record)
        else []
    )
    return ["\n".join(lines), *baseline, origin, _limit(record)]


def _limit(record: Record) -> str:
    """Return the sentences on what the accuracy does not say."""
    if record.params["data"] == "Miniature":
        return _DRAWN_LIMIT
    data = record.params["data.name"]
    if baseline_note.overlaps_imagenet(record):
        return _IMAGENET_LIMIT.format(data=data)
    return f"The accuracy is that on images of `{data}`. On images from elsewhere it may be lower."
