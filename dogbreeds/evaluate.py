"""The command `python -m dogbreeds.evaluate`: measures a trained network and shows its mistakes."""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import console, files
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder, home
from dogbreeds.core.spec import Spec, integer, one_of, path, seed
from dogbreeds.evaluation.summary import Evaluation
from dogbreeds.experiments.compose import build_spec, settings_of
from dogbreeds.experiments.network_evaluation import evaluate_network
from dogbreeds.experiments.plugins import named_plugins
from dogbreeds.experiments.recorded_runs import (
    Only,
    describe_run,
    evaluation_set_of_run,
    is_network_file,
    mlflow_tracking,
    open_network,
    results_folder,
)
from dogbreeds.features.cache import FeatureCache
from dogbreeds.inference.evaluation_set import folder_evaluation_set
from dogbreeds.inference.tta import Tta
from dogbreeds.reports import tables
from dogbreeds.reports.evaluation_report import OWNED_FILES, scores_text, tta_summary
from dogbreeds.tracking.records import Record

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of the command.

    Attributes:
        run: which run's network, or the path of a saved network.
        split: of the run's images; None for test if there is one, else val.
        images: folder of other images to evaluate on.
        on_corrupt: what happens to unreadable images of that folder: `stop` or `skip`.
        mistakes: images on the contact sheet.
        seed: of the bootstrap.
        output: folder of the report.
    """

    group = ""
    run: str = path(example="latest")
    split: str | None = one_of(*_SPLITS, optional=True)
    images: str | None = path(example="path/to/images", optional=True)
    on_corrupt: str = one_of("stop", "skip")
    mistakes: int = integer(at_least=0, example=24)
    seed: int = seed()
    output: str | None = path(example="evaluation", optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None and self.split is not None:
            raise UserError(
                f"split={self.split} and images={self.images} were given. A network is evaluated on one of the two."
                " Leave one out."
            )
        if self.images is None and is_network_file(self.run):
            raise UserError(
                f"run={self.run} is a file, and a file does not record its images. The images to evaluate on must be"
                " given. Type images=path/to/images too."
            )


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="evaluate")
@cli.standalone
def task(config: DictConfig) -> None:
    """Evaluate a network, write the report, and add it to the run."""
    settings = Settings(**{field.name: cli.typed_value(config, field.name) for field in dataclasses.fields(Settings)})
    views = Tta(**settings_of(config, "tta", "views")).views
    only = Only.of(config)
    tracking = mlflow_tracking(config, "A run's network is loaded from MLflow.", settings.run)
    cache = build_spec(config, "features").open_cache()
    with open_network(tracking, settings.run, only) as (record, classifier, file):
        name = describe_run(record) if record else str(file)
        log.info("%s: %d classes, %d px", name, len(classifier.class_names), classifier.image_size)
        if settings.images is not None:
            images = folder_evaluation_set(settings.images, settings.on_corrupt, classifier, cache)
        else:
            images = evaluation_set_of_run(
                tracking,
                cast(Record, record),
                settings.split,
                settings_of(config, "data", "root")["root"],
                classifier,
                cache,
                named_plugins(config),
            )
        default_output = home() / "multirun/evaluation" / results_folder(record, file) / images.name
        output = Path(settings.output).expanduser() if settings.output else default_output
        # The folder comes before the evaluation, so that an unwritable one fails at once.
        with files.atomic_folder(output, OWNED_FILES) as folder:
            measured = evaluate_network(
                classifier,
                images,
                record=record,
                file=file,
                run_predictions=tracking.network_predictions(record) if record else {},
                views=views,
                seed=settings.seed,
            )
            measured.write_report(folder, settings.mistakes)
            if record is not None:
                artifact_path = f"evaluation/{images.name}"
                metrics = {f"{artifact_path}/{key}": value for key, value in measured.evaluation.metrics().items()}
                tracking.add_files(record.run_id, folder, artifact_path, metrics)
    FeatureCache.release()
    _print_scores(measured.evaluation, measured.about, output)
    if record is not None:
        log.info(tracking.run_link(record).line("open"))


def _print_scores(evaluation: Evaluation, about: Sequence[str], output: Path) -> None:
    width = console.terminal_width(sys.stdout)
    sentences = filter(None, (evaluation.calibration.description, tta_summary(evaluation), *about[1:]))
    print("".join([scores_text(evaluation, width), *(tables.paragraph(each, width) for each in sentences)]), end="")
    print(f"report  {output / 'report.html'}")


if __name__ == "__main__":
    cli.main(task, "evaluate")
