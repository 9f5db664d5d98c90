"""The classifier of the Python API: a trained network, and the run or file that it comes from."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core import files
from dogbreeds.core.console import progress
from dogbreeds.core.errors import UserError
from dogbreeds.data import sample
from dogbreeds.data.dataset import Dataset, Provided
from dogbreeds.data.image import ImageLoader
from dogbreeds.evaluation.results import Predictions
from dogbreeds.evaluation.summary import Evaluation
from dogbreeds.experiments.compose import build_spec, compose_config
from dogbreeds.experiments.isolation import python_call
from dogbreeds.experiments.network_evaluation import evaluate_network
from dogbreeds.experiments.network_export import export_network, sample_of_run
from dogbreeds.experiments.recorded_runs import evaluation_set_of_run, split_name
from dogbreeds.features.cache import FeatureCache
from dogbreeds.inference import classifier, exporter
from dogbreeds.inference.evaluation_set import EvaluationSet, folder_evaluation_set, split_evaluation_set
from dogbreeds.inference.export_formats import check_available
from dogbreeds.inference.exporter import ExportedFormat
from dogbreeds.inference.image_sources import find_images, parse_images
from dogbreeds.inference.predictions import Prediction
from dogbreeds.inference.predictor import inference_function, predict_images
from dogbreeds.inference.tta import Tta
from dogbreeds.reports.evaluation_report import OWNED_FILES
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record

if TYPE_CHECKING:
    from dogbreeds.inference.grad_cam import OverlayWriter

# Settings that every data set has, for a data set from Python: its own do not matter to a trained network.
_DATA_DEFAULTS: dict[str, Any] = {"on_corrupt": "stop", "max_corrupt_fraction": 0.0}


@dataclass(frozen=True)
class Classifier(classifier.Classifier):
    """A trained network that predicts, explains, is evaluated and exported. `load` returns one.

    Examples:
        >>> dog = db.load("best")
        >>> len(dog.class_names), dog.image_size
        (12, 64)

    Attributes:
        model: Keras model from `image`, [b, h, w, 3] uint8 RGB of any size, to `probabilities`, [b, classes] float32,
            and `class`, [b] class names.
        class_names: in the order of the probabilities.
        decoder: what decodes and resizes images for it: that of its training, recorded as `data.decoder`.
        record: the run that trained it; None for a file.
        file: the file that it was loaded from.
        tracking: where the run is recorded; None for a file.
    """

    record: Record | None
    file: Path
    tracking: Mlflow | None

    @classmethod
    def of(
        cls, network: classifier.Classifier, record: Record | None, file: Path, tracking: Mlflow | None
    ) -> "Classifier":
        """Return a network of which it is known where it comes from."""
        parts = {field.name: getattr(network, field.name) for field in fields(network)}
        return cls(**parts, record=record, file=file, tracking=tracking)

    @python_call()
    def predict(self, images: str | Path | Sequence[str], top: int | None = None) -> list[Prediction]:
        """Predict the classes of images.

        Examples:
            >>> for prediction in dog.predict("photos/*/0.jpg", top=1):
            ...     print(prediction.image, len(prediction.top), repr(prediction.error))
            photos/breed_0/0.jpg 1 ''
            photos/breed_1/0.jpg 1 ''
            photos/breed_2/0.jpg 1 ''

        Args:
            images: a file, a folder, a pattern, or a list of them.
            top: classes for each image; None for as many as the command `predict` gives.

        Returns:
            One prediction for each image: `top` has pairs of class name and probability. An image that cannot be read
            has an `error` in place of them.

        Raises:
            MissingFileError, UserError: there are no such images, or the network's outputs are not finite.
        """
        return self._predict(images, top, overlays=None)

    @python_call()
    def explain(
        self, images: str | Path | Sequence[str], output: str | Path | None = None, top: int | None = None
    ) -> list[Prediction]:
        """Predict images, and draw over each, by Grad-CAM, where the network found its class.

        Examples:
            >>> (prediction,) = dog.explain("photos/breed_0/0.jpg", output="explained")
            >>> prediction.overlay.startswith("explained/")
            True

        Args:
            images: as for `predict`.
            output: folder of the overlays; None for `multirun/explained`.
            top: as for `predict`.

        Returns:
            As `predict`; `overlay` is the path of the image with the overlay.

        Raises:
            MissingFileError, UserError: as `predict`, or the folder cannot be written.
        """
        from dogbreeds.inference.grad_cam import OverlayWriter

        folder = Path(output if output is not None else compose_config("predict").explain_dir).expanduser()
        overlays = OverlayWriter(folder, self.resize)
        overlays.prepare()
        return self._predict(images, top, overlays)

    def _predict(
        self, images: str | Path | Sequence[str], top: int | None, overlays: "OverlayWriter | None"
    ) -> list[Prediction]:
        given = [str(image) for image in images] if isinstance(images, (list, tuple)) else str(images)
        source = find_images(parse_images(given), io.BytesIO())
        infer = inference_function(self, overlays is not None)
        top = min(top or compose_config("predict").top, len(self.class_names))
        found = predict_images(self, infer, source.images, batch_size=self.batch_size(), top=top, overlays=overlays)
        predictions = []
        with progress("predict", source.total or 0, "images") as advance:
            for prediction in found:
                predictions.append(prediction)
                advance(1)
        return predictions

    @python_call()
    def evaluate(
        self,
        images: str | Path | Dataset | None = None,
        *,
        split: str | None = None,
        views: int = 1,
        output: str | Path | None = None,
    ) -> Evaluation:
        """Measure the network on labelled images.

        Examples:
            >>> evaluation = dog.evaluate()
            >>> evaluation.scores.accuracy.n, 0 <= evaluation.macro_f1.value <= 1
            (120, True)

        Args:
            images: a folder `<class>/…`, a data set, or None for those of the run.
            split: of the run or data set: `train`, `val` or `test`; None for test if there is one, else val.
            views: of each image whose probabilities are averaged; 1 for the image alone.
            output: folder for the report, a page with figures; None for none.

        Returns:
            Scores with intervals, calibration, and results by class.

        Raises:
            MissingFileError, UserError: the images are missing, have changed or have other classes, or the network is
                not the one that its run trained.
        """
        config = compose_config("evaluate")
        measured = evaluate_network(
            self,
            self._evaluation_set(images, split, build_spec(config, "features").open_cache()),
            record=self.record,
            file=self.file,
            run_predictions=self._run_predictions(),
            views=Tta(views=views).views,
            seed=config.seed,
        )
        if output is not None:
            with files.atomic_folder(Path(output).expanduser(), OWNED_FILES) as folder:
                measured.write_report(folder, config.mistakes)
        return measured.evaluation

    @python_call()
    def export(
        self,
        output: str | Path,
        formats: Sequence[str] | None = None,
        *,
        images: str | Path | Dataset | None = None,
    ) -> list[ExportedFormat]:
        """Write the network in other formats, each checked against it, with a model card and the class names.

        The command `export` also adds the files to the run, and registers the network.

        Examples:
            >>> exported = dog.export("exported", formats=["keras", "savedmodel"])
            >>> [(each.name, each.agrees) for each in exported]
            [('keras', True), ('savedmodel', True)]

        Args:
            output: folder to write into. Files of an earlier export there are replaced.
            formats: `keras`, `savedmodel`, `tflite`, `tflite_float16`, `onnx`; None for all of them. The last three
                need `pip install 'dogbreeds[export]'`.
            images: folder or data set of images to check each format on; None for those of the run.

        Returns:
            The formats, each with its size and the comparison with the network.

        Raises:
            MissingFileError, UserError: a format is unknown or not installed, images are missing, or a format gives
                other probabilities; its file is then removed.
        """
        config = compose_config("export")
        names = tuple(formats if formats is not None else config.formats)
        check_available(names)
        exported = export_network(
            self,
            names,
            self._check_images(images, config.images),
            Path(output).expanduser(),
            record=self.record,
            file=self.file,
            predictions=self._run_predictions(),
        )
        exporter.require_agreement(exported)
        return exported

    def _run_predictions(self) -> Mapping[str, Predictions]:
        if self.record is None or self.tracking is None:
            return {}
        return self.tracking.network_predictions(self.record)

    def _evaluation_set(
        self, images: str | Path | Dataset | None, split: str | None, cache: FeatureCache
    ) -> EvaluationSet:
        if isinstance(images, Dataset):
            name = split_name(images, split)
            data = Provided(resize=self.resize, decoder=self.decoder, **_DATA_DEFAULTS)
            self._check_classes(images)
            return split_evaluation_set(name, images.splits[name], data, self, cache)
        if images is not None:
            return folder_evaluation_set(str(images), "stop", self, cache)
        if self.record is None or self.tracking is None:
            raise self._no_images()
        return evaluation_set_of_run(self.tracking, self.record, split, None, self, cache)

    def _check_images(self, images: str | Path | Dataset | None, count: int) -> list[ImageLoader]:
        if isinstance(images, Dataset):
            chosen = images.splits[split_name(images, None)]
            return list(sample.sample_split(chosen, count, skip=False).values())
        if images is not None:
            return sample.sample_folder(str(images), count)
        if self.record is None or self.tracking is None:
            raise self._no_images()
        return sample_of_run(self.tracking, self.record, None, count, self, self._run_predictions())

    def _no_images(self) -> UserError:
        return UserError(
            f"{self.file} is a file, and a file does not record its images. The images must be given. Type"
            " images='path/to/images', or images=dataset."
        )

    def _check_classes(self, dataset: Dataset) -> None:
        if dataset.class_names != self.class_names:
            raise UserError(
                f"{dataset.name} has the classes {', '.join(dataset.class_names[:5])} …, and the network"
                f" {', '.join(self.class_names[:5])} …. They must be the same, in the same order. Type"
                " Dataset.from_arrays(..., class_names=classifier.class_names)."
            )
