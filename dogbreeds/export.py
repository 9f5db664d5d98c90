"""The command `python -m dogbreeds.export`: exports a trained network in checked formats; registers it in MLflow."""

import dataclasses
import functools
import logging
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dogbreeds import cli
from dogbreeds.core import console
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder, home
from dogbreeds.core.spec import Spec, integer, number, path, text, texts
from dogbreeds.core.text import size_text
from dogbreeds.data import sample
from dogbreeds.experiments import recorded_runs
from dogbreeds.experiments.compose import settings_of
from dogbreeds.experiments.network_export import export_network, sample_of_run
from dogbreeds.experiments.plugins import named_plugins
from dogbreeds.experiments.recorded_runs import Only
from dogbreeds.inference import export_formats, exporter
from dogbreeds.inference.export_formats import FORMATS
from dogbreeds.inference.exporter import ExportedFormat
from dogbreeds.models.custom_layers import needs_keras_hub
from dogbreeds.reports import tables
from dogbreeds.reports.tables import Column
from dogbreeds.tracking import logged_model, promotion_gate, registry
from dogbreeds.tracking.logged_model import ServingLimits
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)

# A registered model's name or an alias: what MLflow accepts, and what needs no quoting in a URL.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Aliases that MLflow reserves for versions.
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
# A terminal of this width has room for the names of the files.
_MIN_WIDTH_FILES = 90


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of the command.

    Attributes:
        run: which run's network, or the path of a saved network.
        formats: to write.
        images: number of images to check each format on.
        images_from: folder of images to check on; None for the run's own.
        output: folder to export into.
        register: registered model to add a version to; None for none.
        alias: that is to point to the version.
        alpha: level of the paired test that a registered network must pass.
    """

    group = ""
    run: str = path(example="latest")
    formats: tuple[str, ...] = texts(example="[keras,onnx]")
    images: int = integer(at_least=1, example=200)
    images_from: str | None = path(example="path/to/images", optional=True)
    output: str | None = path(example="exported", optional=True)
    register: str | None = text(example="dogbreeds", optional=True)
    alias: str = text(example="champion")
    alpha: float = number(above=0, below=1, example=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        export_formats.check_available(self.formats)
        for key, name in (("register", self.register), ("alias", self.alias)):
            reserved = key == "alias" and _RESERVED_ALIAS.fullmatch(self.alias)
            if name is not None and (not _NAME.fullmatch(name) or reserved):
                raise UserError(
                    f"{key} was {name!r}. It must begin with a letter, have only letters, digits, - and _, and not be"
                    " an alias that MLflow reserves, such as latest. Type"
                    f" {key}={'dogs' if key == 'register' else 'champion'}, for example."
                )
        if recorded_runs.is_network_file(self.run) and self.images_from is None:
            raise UserError(
                f"run={self.run} is a file, and a file does not record its images. Each format is checked on images,"
                " which must be given. Type images_from=path/to/images too."
            )
        if recorded_runs.is_network_file(self.run) and self.register is not None:
            raise UserError(
                f"register={self.register} was given with run={self.run}, which is a file. Only a recorded run can be"
                " registered, because its measurements decide. Type run=<a run's id>, or leave out register."
            )


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="export")
@cli.standalone
def task(config: DictConfig) -> None:
    """Write and check each format, add the files to the run, and register the network if it passes the gate."""
    settings = _settings(config)
    limits = ServingLimits(**settings_of(config, "serving", "max_images", "max_megapixels"))
    tracking = recorded_runs.mlflow_tracking(config, "A run's network is loaded from MLflow.", settings.run)
    only = Only.of(config)
    with recorded_runs.open_network(tracking, settings.run, only) as (record, classifier, file):
        name = recorded_runs.describe_run(record) if record else file
        log.info("%s: %d classes, %d px", name, len(classifier.class_names), classifier.image_size)
        predictions = tracking.network_predictions(record) if record is not None else {}
        if settings.images_from is not None or record is None:
            images = sample.sample_folder(settings.images_from or "", settings.images)
        else:
            root, plugins = settings_of(config, "data", "root")["root"], named_plugins(config)
            images = sample_of_run(tracking, record, root, settings.images, classifier, predictions, plugins)
        default_output = home() / "multirun/exported" / recorded_runs.results_folder(record, file)
        output = Path(settings.output).expanduser() if settings.output else default_output
        formats = export_network(
            classifier,
            settings.formats,
            images,
            output,
            record=record,
            file=file,
            predictions=predictions,
            add_to_run=functools.partial(_add_files_to_run, tracking, record) if record is not None else None,
        )
        last_lines = []
        try:
            if record is not None:
                model_id = _log_served_model(
                    tracking, record, classifier, file, exporter.example_jpeg(images[0]), limits
                )
                last_lines.append(_serve_command(tracking, model_id))
            exporter.require_agreement(formats)
            if record is not None and settings.register is not None:
                last_lines.append(_register(settings.register, settings, tracking, record, model_id))
        finally:
            # Printed when everything is done, because a reader such as `head` may end the command by leaving.
            print(f"{_parity_table(formats)}{output}", *last_lines, sep="\n")


def _settings(config: DictConfig) -> Settings:
    values: Any = OmegaConf.to_container(config, resolve=True)
    fields = {field.name: values[field.name] for field in dataclasses.fields(Settings)}
    return Settings(**fields | {"run": cli.typed_value(config, "run")})


def _add_files_to_run(tracking: Mlflow, record: Record, folder: Path) -> None:
    started = time.perf_counter()
    tracking.add_files(record.run_id, folder, registry.EXPORT_FOLDER, {})
    log.info("added to run %s in %.1f s", short(record.run_id), time.perf_counter() - started)
    log.info(tracking.run_link(record).line("open"))


def _log_served_model(
    tracking: Mlflow, record: Record, classifier: "Classifier", file: Path, example: bytes, limits: ServingLimits
) -> str:
    """Log the network as a model that MLflow can serve, and ask it about an image. Returns the model's id."""
    started = time.perf_counter()
    packages = ["keras-hub"] if needs_keras_hub(file) else []
    model_id = logged_model.log_model(tracking, record, file, example, len(classifier.class_names), limits, packages)
    (answer,) = logged_model.ask(tracking, record, model_id, [example])
    exporter.check_served(classifier, example, answer)
    log.info("served model: logged and asked in %.1f s", time.perf_counter() - started)
    return model_id


def _parity_table(formats: Sequence[ExportedFormat]) -> str:
    width = console.terminal_width(sys.stdout)
    has_files = width is None or width >= _MIN_WIDTH_FILES
    columns = [
        Column("format"),
        *([Column("file")] if has_files else []),
        Column("size", numeric=True),
        Column("max |difference|", numeric=True),
        Column("allowed", numeric=True),
        Column("same class", numeric=True, min_width=8),
        Column("agrees", min_width=8),
    ]
    rows = []
    for each in formats:
        spec = FORMATS[each.name]
        rows.append(
            [
                each.name,
                *([spec.file] if has_files else []),
                size_text(each.size),
                f"{each.parity.max_difference:.1e}",
                f"{spec.tolerance:g}",
                f"{each.parity.same_class:,} of {each.parity.n:,}",
                "yes" if each.agrees else "no: removed",
            ]
        )
    table = tables.text_table(columns, rows, width)
    return "".join(f"{line}\n" for line in table.splitlines() if line)


def _serve_command(tracking: Mlflow, model_id: str) -> str:
    """Return the command that serves a logged model. An address with an `@` is left out: it may have a password."""
    uri = "<tracking.uri>" if "@" in tracking.uri else shlex.quote(tracking.uri)
    return f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/{model_id} --env-manager local"


# --- registration -----------------------------------------------------


def _register(
    name: str,
    settings: Settings,
    tracking: Mlflow,
    record: Record,
    model_id: str,
) -> str:
    """Register a run's model if it passes the gate, and describe the outcome in a sentence.

    Raises:
        UserError: it does not pass, or the alias points to a version without a run.
    """
    target = f"{name}@{settings.alias}"
    current = registry.version_by_alias(tracking, name, settings.alias)
    if current is not None and not current.run_id:
        raise UserError(
            f"Run {short(record.run_id)} was not registered: {target}, version {current.number}, belongs to no run. A"
            " new version is compared with the run of the current one. Type another name, such as register=other."
        )
    if current is not None and current.run_id == record.run_id:
        return (
            f"{target} already points to version {current.number}, run {short(record.run_id)}: nothing was registered."
        )
    promotion_gate.check_verdict(record, target)
    tags = {"run": record.run_id, "verdict": record.tags["verdict"]}
    for metric in ("test/accuracy", "best/val_accuracy"):
        if metric in record.metrics:
            tags[metric.replace("/", ".")] = f"{record.metrics[metric]:.4f}"
    comparison = "there was no version before"
    if current is not None:
        current_record = tracking.record(current.run_id)
        pair = promotion_gate.compare_on_test(
            record,
            current_record,
            tracking.predictions(record.run_id),
            tracking.predictions(current_record.run_id),
            target,
        )
        promotion_gate.check_improvement(record, current_record, pair, settings.alpha, target)
        comparison = f"compared with version {current.number}, run {short(current_record.run_id)}, it has {pair}"
        tags |= {"beaten": current_record.run_id, "pair": str(pair)}
    version = registry.promote(
        tracking,
        name=name,
        alias=settings.alias,
        before=current,
        record=record,
        model_id=model_id,
        tags=tags,
    )
    return f"{target} now points to version {version.number}, run {short(record.run_id)}: {comparison}."


if __name__ == "__main__":
    cli.main(task, "export")
