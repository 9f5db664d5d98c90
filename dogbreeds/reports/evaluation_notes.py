"""Notes of an evaluation report: sentences on the limits of its numbers, and the provenance of the network."""

from collections.abc import Sequence
from pathlib import Path

from dogbreeds.data.corrections import describe
from dogbreeds.reports import baseline_note
from dogbreeds.tracking.records import REFITTED_TAG, Record

_PARAMETERS = (
    "model.architecture",
    "model.weights",
    "model.image_size",
    "preprocessing.mode",
    "head",
    "phase",
    "unfreeze.plan",
    "optimizer.lr",
    "seed",
)
_VERSION_TAGS = ("git.commit", "version.keras", "version.tensorflow")


def about(
    record: Record | None,
    network: str,
    split: str,
    images: str,
    image_ids: Sequence[str],
    difference: float | None,
) -> tuple[str, ...]:
    """State which network was evaluated on which images, and how optimistic the numbers are.

    Args:
        record: the run; None for a network file of unknown origin.
        network: the network in a few words.
        split: name of the evaluation set; `train`, `val` and `test` are the run's own splits.
        images: number of images and classes, in words.
        image_ids: name of each image.
        difference: largest difference of a probability from those that the run recorded; None if it recorded none.

    Returns:
        Sentences. The first names network and images.
    """
    subject = f"{network[0].upper() if record else network[0]}{network[1:]}, evaluated on {images} ({split})."
    if record is None:
        return subject, "Its training images are unknown: if any of these are among them, the results are optimistic."
    reason = record.tags.get("verdict.reason", "").rstrip(".")
    sentences = [subject, f"Verdict {record.tags['verdict'].replace('_', ' ')}: {reason}."]
    corrections = describe(*(int(record.params.get(name, 0)) for name in ("data.num_excluded", "data.num_relabelled")))
    if corrections:
        sentences.append(f"Its data were corrected: {corrections}.")
    if split == "train":
        sentences.append("It was trained on these images: the results are optimistic and say nothing about others.")
    refitted = record.tags.get(REFITTED_TAG, "")
    if split == "val" and refitted:
        sentences.append(f"The saved network was fitted to {refitted}: the results are optimistic.")
    elif split == "val":
        sentences.append("Its best epoch was chosen on these images: the results are slightly optimistic.")
    if difference is not None:
        sentences.append(
            f"The saved network reproduces the probabilities recorded during training to within {difference:.0e}."
        )
    return (*sentences, baseline_note.describe(record, split, len(image_ids)))


def provenance(record: Record | None, network_file: Path, split: str, images: str) -> dict[str, str]:
    """List where the network and the images come from, as text by name.

    Args:
        record: the run; None for a network file of unknown origin.
        network_file: the saved network.
        split: name of the evaluation set.
        images: number of images and classes, in words.
    """
    facts = {"images": f"{images}, {split}"}
    if record is None:
        return facts | {"network": str(network_file)}
    facts |= {"run": record.run_id, "name": record.name, "data": record.params["data.name"]}
    facts |= {key: record.params[key] for key in _PARAMETERS if key in record.params}
    return facts | {key: record.tags[key] for key in _VERSION_TAGS if key in record.tags}
