"""How many planted near-duplicates and label errors an audit finds, on real photos or drawn dogs.

`make audit-study` audits what the settings name, such as `model=effnetb0 data=folder data.root=photos`. Changed copies
of test images are planted among the training images, and the whole data set is audited, which takes a pass over all
images. Pairs that were not planted are on the page that it writes, to be looked at. Labels need no further pass.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import dogbreeds as db
from dogbreeds.core.paths import home
from dogbreeds.data.image import ImageLoader
from dogbreeds.evaluation import metrics
from dogbreeds.evaluation.audit import NEAR_DUPLICATE, Audit
from dogbreeds.evaluation.class_scores import confusion_matrix
from dogbreeds.evaluation.label_errors import FOLDS, find_label_errors, folds_of, from_probabilities
from dogbreeds.evaluation.logistic_regression import TrainingProblem
from dogbreeds.evaluation.metrics import PairedOutcome, Proportion
from dogbreeds.experiments.audit import audit_dataset, write
from dogbreeds.experiments.python_runs import with_dataset
from dogbreeds.experiments.run import Run

KINDS = ("encoded", "resized", "cropped", "mirrored")
COPIES = 200
WRONG_SHARE = 0.05
# Epochs and batch of the guide's head, whose probabilities are compared with those of logistic regression.
HEAD_EPOCHS, HEAD_BATCH = 12, 32
# `C` of the classifiers that are trained with and without what was found.
STRENGTH = 1e-3


def changed(pixels: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return a copy of an image of one of `KINDS`, [h, w, 3] uint8."""
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
    return np.asarray(image)


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


def main(overrides: Sequence[str], seed: int = 0, output: Path | None = None) -> list[str]:
    """Run the study, print its lines, and return them.

    Args:
        overrides: of the command `audit`.
        seed: of what is planted.
        output: folder of the page; None for `multirun/audit_study`.
    """
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    run = db.compose(overrides)
    generator = np.random.default_rng(seed)
    dataset, planted = with_copies(run.data.open(), generator)
    run = with_dataset(run)
    audit, images = audit_dataset(run, dataset)
    write(audit, images, output or home() / "multirun/audit_study")
    for line in copies_found(audit, planted):
        tell(line)
    tell(f"seconds after the pass: {audit.seconds:.0f} for {len(audit.ids):,} images")
    # Labels are planted in the images as they were.
    kept = np.array([name not in planted for name in audit.ids])
    features, labels, splits = images.features[kept], images.labels[kept], images.splits[kept]
    classes = len(audit.class_names)
    groups = np.arange(len(labels))
    plain = find_label_errors(features, labels, groups, classes)
    tell(f"labels as they are: {len(plain.images):,} findings, share {plain.share:.3f}, interval {plain.interval}")
    confusion = confusion_matrix(labels, plain.probabilities.argmax(axis=1), classes)
    np.fill_diagonal(confusion, -1)
    for name, likeliest in (("any class", None), ("most confusable class", confusion.argmax(axis=1))):
        given, wrong = plant_labels(labels, classes, generator, likeliest)
        by_head = from_probabilities(_by_guides_head(run, features, given, groups, classes), given)
        for method, found in (("logistic", find_label_errors(features, given, groups, classes)), ("guide", by_head)):
            first = found.images[: wrong.sum()]
            tell(
                f"labels, {WRONG_SHARE:.0%} moved to {name}, {method}: of {len(first)} first findings"
                f" {Proportion(int(wrong[first].sum()), len(first))} are planted; all {len(found.images):,} have"
                f" {Proportion(int(wrong[found.images].sum()), int(wrong.sum()))} of them; share {found.share:.3f}"
            )
            tell(
                f"  trained without the findings: {_retrained(features, given, labels, splits, found.images, classes)}"
            )
    return lines


def with_copies(dataset: db.Dataset, generator: np.random.Generator) -> tuple[db.Dataset, dict[str, tuple[str, str]]]:
    """Plant changed copies of test images among the training images.

    Returns:
        The data set, and for each copy the name of its image and its kind, by its own name.
    """
    parts: dict[str, tuple[list[np.ndarray], list[int]]] = {}
    for name, split in dataset.splits.items():
        loaders: list[ImageLoader] = list(split.source.loaders())
        parts[name] = ([loaders[row]() for row in split.rows.tolist()], split.labels.tolist())
    images, labels = parts["train"]
    test_images, test_labels = parts["test"]
    count = min(COPIES, len(test_images) // len(KINDS) * len(KINDS))
    planted = {}
    for number, row in enumerate(generator.choice(len(test_images), count, replace=False).tolist()):
        kind = KINDS[number % len(KINDS)]
        # The names that images in memory have.
        planted[f"train/{len(images)}"] = (f"test/{row}", kind)
        images.append(changed(test_images[row], kind, generator))
        labels.append(test_labels[row])
    given = db.Dataset.from_arrays(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        class_names=dataset.class_names,
        name=dataset.name,
    )
    return given, planted


def copies_found(audit: Audit, planted: dict[str, tuple[str, str]]) -> list[str]:
    """State the share of planted copies that an audit found, and which other pairs it reports."""
    pairs = [{audit.ids[each.image], audit.ids[each.other]} for each in audit.of(NEAR_DUPLICATE)]
    lines = []
    for kind in KINDS:
        found = [{copy, image} in pairs for copy, (image, of_kind) in planted.items() if of_kind == kind]
        lines.append(f"copies, {kind}: recall {Proportion(sum(found), len(found))}")
    found = [{copy, image} in pairs for copy, (image, _) in planted.items()]
    lines.append(f"copies, all: recall {Proportion(sum(found), len(found))}")
    # A planted copy is also one of each copy that its image had before.
    others = [pair for pair in pairs if not pair & planted.keys()]
    lines.append(f"pairs that were not planted, on the page to be looked at: {len(others)} of {len(pairs)}")
    return lines


def _by_guides_head(run: Run, features: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """Return the probabilities of each image by the guide's head, trained without it: [n, classes] float32."""
    import keras

    head = db.compose(["head=mlp"]).head
    folds = folds_of(labels, groups)
    probabilities = np.empty((len(labels), classes), np.float32)
    for fold in range(FOLDS):
        keras.utils.set_random_seed(run.seed)
        own = folds == fold
        network = head.build(features.shape[1], classes, run.seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(keras.optimizers.Adam(1e-3), loss)
        network.fit(features[~own], labels[~own], batch_size=HEAD_BATCH, epochs=HEAD_EPOCHS, verbose=0)
        probabilities[own] = metrics.probabilities(network.predict(features[own], batch_size=512, verbose=0))
    return probabilities


def _retrained(
    features: np.ndarray, given: np.ndarray, labels: np.ndarray, splits: np.ndarray, found: np.ndarray, classes: int
) -> str:
    """Compare a classifier that trains without the findings with one that trains with them, on right test labels."""
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
    problem = TrainingProblem(features, given[train], classes, train)
    fits = (problem.fit(STRENGTH), problem.fit(STRENGTH, left_out=np.isin(train, found)))
    before, after = (problem.classifier(fit).logits(features, test).argmax(axis=1) == labels[test] for fit in fits)
    pair = PairedOutcome.of(before, after, "test")
    low, high = pair.interval
    return (
        f"{100 * before.mean():.1f} → {100 * after.mean():.1f} % on {pair.n:,} test images"
        f" ({100 * low:+.1f} to {100 * high:+.1f} points, p = {pair.p_value:.2g})"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
