"""How many planted label errors and near-duplicates an audit finds, on real photos or drawn dogs.

`make audit-study` audits what the settings name, such as `model=effnetb0 data=folder data.root=photos`. Planted labels
need no further pass over the images; copies are changed at the size of the decoded images and given to the same
comparison of pixels, without the choice of neighbours by features.
"""

import io
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

import dogbreeds as db
from dogbreeds.data.alignment import grey_images
from dogbreeds.data.near_duplicates import find_copies
from dogbreeds.evaluation.class_scores import confusion_matrix
from dogbreeds.evaluation.label_errors import find_label_errors
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.experiments.audit import read_images

KINDS = ("encoded", "resized", "cropped", "mirrored")
WRONG_SHARE = 0.05


def changed(pixels: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return a copy of an image at its own size, of one of `KINDS`."""
    image = Image.fromarray(np.asarray(pixels))
    width, height = image.size
    if kind == "encoded":
        with io.BytesIO() as file:
            image.save(file, "JPEG", quality=int(generator.integers(20, 60)))
            image = Image.open(file).convert("RGB")
    elif kind == "resized":
        image = image.resize((int(width * generator.uniform(0.3, 0.7)), int(height * generator.uniform(0.3, 0.7))))
    elif kind == "cropped":
        side = generator.uniform(0.7, 0.95)
        left, top = generator.uniform(0, 1 - side, 2)
        image = image.crop(
            (int(left * width), int(top * height), int((left + side) * width), int((top + side) * height))
        )
    else:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image.resize((width, height)))


def plant_labels(
    labels: np.ndarray, classes: int, generator: np.random.Generator, likeliest: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Move images to another class.

    Args:
        labels: [n] int.
        classes: number of classes.
        generator: chooses the images.
        likeliest: [classes] the class to move images of each to; None for any other one.

    Returns:
        [n] the labels with errors, and [n] bool, which are wrong.
    """
    wrong = np.zeros(len(labels), bool)
    wrong[generator.choice(len(labels), round(WRONG_SHARE * len(labels)), replace=False)] = True
    given = labels.copy()
    shift = generator.integers(1, classes, wrong.sum())
    given[wrong] = (labels[wrong] + shift) % classes if likeliest is None else likeliest[labels[wrong]]
    return given, wrong


def main(overrides: Sequence[str], seed: int = 0) -> list[str]:
    """Run the study, print its lines, and return them."""
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    run = db.compose(overrides)
    dataset = run.data.open()
    images = read_images(run, dataset)
    features, ids, labels = images.features, images.ids, images.labels
    generator = np.random.default_rng(seed)
    classes = len(dataset.class_names)
    chosen = np.sort(generator.choice(len(ids), min(200, len(ids) // 4 * 4), replace=False))
    kinds = [KINDS[number % 4] for number in range(len(chosen))]
    copies = [changed(images.pixels[int(row)], kind, generator) for row, kind in zip(chosen, kinds, strict=True)]
    grey = np.concatenate([grey_images(images.pixels, chosen), grey_images(np.stack(copies), np.arange(len(copies)))])
    pairs = np.stack([np.arange(len(chosen)), len(chosen) + np.arange(len(chosen))], 1)
    found = {each.first for each in find_copies(grey, pairs)}
    for kind in KINDS:
        of_kind = [number for number, each in enumerate(kinds) if each == kind]
        tell(f"copies, {kind}: recall {Proportion(len(found & set(of_kind)), len(of_kind))}")
    groups = np.arange(len(ids))
    plain = find_label_errors(features, labels, groups, classes)
    tell(f"labels as they are: {len(plain.images):,} findings, share {plain.share:.3f}, interval {plain.interval}")
    confusion = confusion_matrix(labels, plain.probabilities.argmax(axis=1), classes)
    np.fill_diagonal(confusion, -1)
    for name, likeliest in (("any class", None), ("most confusable class", confusion.argmax(axis=1))):
        given, wrong = plant_labels(labels, classes, generator, likeliest)
        after = find_label_errors(features, given, groups, classes)
        first = after.images[: wrong.sum()]
        planted_first = Proportion(int(wrong[first].sum()), len(first))
        planted_found = Proportion(int(wrong[after.images].sum()), int(wrong.sum()))
        tell(
            f"labels, {WRONG_SHARE:.0%} moved to {name}: of {len(first)} first findings {planted_first} are planted;"
            f" all {len(after.images):,} have {planted_found} of the planted; share {after.share:.3f}"
        )
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
