"""Export of a trained network into a folder: its formats, checked on images, with a model card and class names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core import files
from dogbreeds.core.errors import UserError
from dogbreeds.data import sample
from dogbreeds.data.image import ImageLoader
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.recorded_runs import open_dataset
from dogbreeds.inference import exporter
from dogbreeds.inference.export_formats import FORMATS
from dogbreeds.inference.exporter import ExportedFormat
from dogbreeds.models.precision import probability_tolerance
from dogbreeds.reports.model_card import model_card
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record
from dogbreeds.tracking.saved_network import check_predictions

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

# Every file that an export may write; a later export into the same folder replaces them. breeds.txt is what
# classes.txt was called before version 0.2.0.
_OWNED_FILES = ("checks.json", "README.md", "classes.txt", "breeds.txt", *(spec.file for spec in FORMATS.values()))


def export_network(
    classifier: "Classifier",
    formats: Sequence[str],
    images: Sequence[ImageLoader],
    output: Path,
    *,
    record: Record | None,
    file: Path,
    predictions: Mapping[str, Predictions],
    add_to_run: Callable[[Path], None] | None = None,
) -> list[ExportedFormat]:
    """Write each format with its check, a model card and the class names; completely or not at all.

    Args:
        classifier: the network.
        formats: names of formats.
        images: to check each format on.
        output: folder to export into. Files of an earlier export there are replaced.
        record: run of the network; None for a file.
        file: file of the network.
        predictions: what the run recorded, by split.
        add_to_run: takes the complete folder before it is moved to `output`; None for nothing.

    Returns:
        The formats. The file of one that does not agree with the network is left out.

    Raises:
        UserError: the folder cannot be written, or the network lies in it.
    """
    _check_outside(output, file)
    with files.atomic_folder(output, _OWNED_FILES) as folder:
        exported = exporter.export_and_check(formats, classifier, exporter.with_odd_sizes(list(images)), folder)
        _write_model_card(folder, exported, record, classifier, file, predictions)
        exporter.write_checks(folder / "checks.json", exported)
        if add_to_run is not None:
            add_to_run(folder)
    return exported


def _check_outside(output: Path, file: Path) -> None:
    """Raise `UserError` if the network lies in the output folder, where the export would replace it."""
    if output.resolve() in file.resolve().parents:
        raise UserError(
            f"{file} lies in {output}, which is the output folder. The output must be another folder. Type"
            " output=<folder>."
        )


def sample_of_run(
    tracking: Mlflow,
    record: Record,
    root: str | None,
    count: int,
    classifier: "Classifier",
    predictions: Mapping[str, Predictions],
    plugins: Sequence[str] = (),
) -> list[ImageLoader]:
    """Sample images of a run's test (else validation) split, and check that the network is the run's on them.

    Args:
        tracking: where the run is recorded.
        record: the run.
        root: folder that contains the images now; None for the recorded one.
        count: number of images.
        classifier: the network.
        predictions: what the run recorded, by split.
        plugins: modules whose data sets may be opened.

    Raises:
        MissingFileError, UserError: the images are missing or have changed, or the network gives other probabilities
            than the run recorded.
    """
    data, dataset = open_dataset(tracking, record, root, plugins)
    split, name = (dataset.test, "test") if dataset.test is not None else (dataset.val, "val")
    images = sample.sample_split(split, count, data.on_corrupt == "skip")
    check_predictions(
        record,
        predictions.get(name),
        classifier.class_names,
        list(images),
        exporter.logits(classifier, images.values()),
        probability_tolerance(),
    )
    return list(images.values())


def _write_model_card(
    folder: Path,
    formats: Sequence[ExportedFormat],
    record: Record | None,
    classifier: "Classifier",
    file: Path,
    predictions: Mapping[str, Predictions],
) -> None:
    """Write the model card and the list of class names."""
    specs = {each.name: FORMATS[each.name] for each in formats if each.agrees}
    card = model_card(
        title=f"{record.params['model.architecture']} on {record.params['data.name']}" if record else file.stem,
        record=record,
        predictions=predictions,
        class_names=classifier.class_names,
        image_size=classifier.image_size,
        resize=classifier.resize,
        usages={name: spec.usage.format(file=spec.file) for name, spec in specs.items()},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classifier.class_names), encoding="utf-8")
