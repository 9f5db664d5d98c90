"""The command `python -m dogbreeds.export`: hands a trained network over, in formats that are checked, and by MLflow."""

import dataclasses
import io
import json
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
from dogbreeds.core import console, files
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec, integer, number, text, texts
from dogbreeds.data import sample
from dogbreeds.data.image import Photo
from dogbreeds.experiments import recorded_runs
from dogbreeds.experiments.recorded_runs import Only
from dogbreeds.inference import export_formats
from dogbreeds.inference.agreement import with_odd_sizes
from dogbreeds.inference.export_formats import FORMATS
from dogbreeds.inference.exporter import Exported, _check_all_agree, _export
from dogbreeds.reports.model_card import card
from dogbreeds.tracking import promotion_gate, registry
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)

# Of a registered model, and of an alias: what MLflow takes, and addresses need not quote
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# MLflow's own words for versions
_TAKEN = re.compile(r"latest|v\d+", re.IGNORECASE)
# All that an export writes
_OWN = ("checks.json", "README.md", "breeds.txt", *(kind.file for kind in FORMATS.values()))
# Columns of a terminal that has room for file names
_NARROW = 90
# Of what is not shown in a terminal
_WIDE = 120


@dataclass(frozen=True, kw_only=True)
class Wanted(Spec):
    """What is handed over, and where to."""

    group = ""
    run: str = text(example="latest")
    formats: tuple[str, ...] = texts(example="[keras,onnx]")
    photos: int = integer(at_least=1, example=200)
    photos_from: str | None = text(example="path/to/photos", optional=True)
    output: str | None = text(example="exported", optional=True)
    register: str | None = text(example="dogbreeds", optional=True)
    alias: str = text(example="champion")
    alpha: float = number(above=0, below=1, example=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        export_formats.check_installed(self.formats)
        for key, name in (("register", self.register), ("alias", self.alias)):
            if name is not None and (not _NAME.fullmatch(name) or (key == "alias" and _TAKEN.fullmatch(name))):
                raise UserError(
                    f"{key} was {name!r}. It must be a name of letters, digits, - and _ that begins with a letter, and"
                    " no alias of MLflow's own, such as latest. Type"
                    f" {key}={'dogs' if key == 'register' else 'champion'}, for example."
                )
        if recorded_runs.is_file(self.run) and self.photos_from is None:
            raise UserError(
                f"run={self.run} is a file, which does not know its photos. Each format is checked on photos, so that"
                " some must be named. Type photos_from=path/to/photos, too."
            )
        if recorded_runs.is_file(self.run) and self.register is not None:
            raise UserError(
                f"register={self.register} was asked for with run={self.run}, which is a file. What is registered must"
                " have been measured, in a run. Type run=<a run's id>, or leave out register."
            )


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="export")
@cli.alone
def task(config: DictConfig) -> None:
    """Writes and checks each format, keeps them with the run, and registers what passes the gate."""
    given: Any = OmegaConf.to_container(config, resolve=True)
    wanted = Wanted(
        **{field.name: given[field.name] for field in dataclasses.fields(Wanted)} | {"run": cli.word(config, "run")}
    )
    tracking = recorded_runs.store(config, "A run's network is found through MLflow, which kept it.", wanted.run)
    with recorded_runs.opened(tracking, wanted.run, Only(**config["only"])) as (record, classifier, file):
        log.info(
            "%s: %d breeds, %d px",
            recorded_runs.said(record) if record else file,
            len(classifier.class_names),
            classifier.size,
        )
        # Not opened yet
        photos = with_odd_sizes(_photos(wanted, config["data"]["root"], tracking, record))
        place = (
            Path(wanted.output).expanduser()
            if wanted.output
            else home() / "multirun/exported" / recorded_runs.folder_name(record, file)
        )
        _check_apart(place, file)
        with files.folder(place, _OWN) as folder:
            found = _export(wanted.formats, classifier, photos, folder)
            _describe(folder, found, tracking, record, classifier, file)
            model_id = _keep(tracking, record, folder, file, photos[0]) if record is not None else None
    registered = ""
    try:
        _check_all_agree(found)
        if record is not None and model_id is not None and wanted.register is not None:
            registered = _register(wanted.register, wanted, tracking, record, model_id)
    finally:
        # after all has been done: whoever reads this may leave before the end
        print(f"{_table(found)}{place}")
        if model_id is not None:
            # A password may stand in it
            uri = "<tracking.uri>" if "@" in tracking.uri else shlex.quote(tracking.uri)
            print(f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/{model_id} --env-manager local")
        if registered:
            print(registered)


def _check_apart(place: Path, file: Path) -> None:
    """Raises `UserError` where what is exported lies in the folder that it is exported to, and would be replaced."""
    if place.resolve() in file.resolve().parents:
        raise UserError(
            f"{file} lies in {place}, which the export goes to. It must go to another folder. Type output=<folder>."
        )


def _photos(wanted: Wanted, root: str | None, tracking: Mlflow, record: Record | None) -> list[Photo]:
    """Photos to check on, spread over all that there are: of a folder, or of those that the run was tested on."""
    if wanted.photos_from is not None or record is None:
        return sample.of_folder(wanted.photos_from or "", wanted.photos)
    data, dataset = recorded_runs.dataset(tracking, record, root)
    return sample.of_split(dataset.test or dataset.val, wanted.photos, data.on_corrupt == "skip")


# --- what goes with them ----------------------------------------------------------------------------------------------------


def _describe(
    folder: Path,
    found: Sequence[Exported],
    tracking: Mlflow,
    record: Record | None,
    classifier: "Classifier",
    file: Path,
) -> None:
    title = (
        f"{record.params['model.architecture']} on {record.params['data.name']}" if record is not None else file.stem
    )
    said = tracking.predictions(record.run_id) if record is not None else {}
    usages = {each.name: FORMATS[each.name].usage.format(file=FORMATS[each.name].file) for each in found if each.agrees}
    text = card(title, record, said, classifier.class_names, classifier.size, classifier.resize, usages)
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "breeds.txt").write_text("".join(f"{name}\n" for name in classifier.class_names), encoding="utf-8")
    checks = {
        each.name: (
            {"bytes": each.size, "allowed": FORMATS[each.name].allowed, "agrees": each.agrees}
            | dataclasses.asdict(each.agreement)
        )
        for each in found
    }
    (folder / "checks.json").write_text(json.dumps(checks, indent=2) + "\n", encoding="utf-8")


def _keep(tracking: Mlflow, record: Record, folder: Path, file: Path, photo: Photo) -> str:
    """Keeps all with the run; gives the id of the model that MLflow can serve."""
    from PIL import Image

    started = time.perf_counter()
    tracking.add(record.run_id, folder, registry.FOLDER, {})
    small = Image.fromarray(photo())
    small.thumbnail((224, 224))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG")
    model_id = registry.log(tracking, record, file, encoded.getvalue())
    log.info("kept with run %s in %.1f s", short(record.run_id), time.perf_counter() - started)
    return model_id


def _table(found: Sequence[Exported]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    width = console.columns(sys.stdout)
    wide = (width or _WIDE) >= _NARROW
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("format", no_wrap=True)
    for heading in (*(("file",) if wide else ()), "MB", "max |difference|", "allowed", "same first breed", "agrees"):
        table.add_column(heading, justify="left" if heading in ("file", "agrees") else "right")
    for each in found:
        kind, agreement = FORMATS[each.name], each.agreement
        cells = [
            f"{each.size / 1e6:.1f}",
            f"{agreement.difference:.1e}",
            f"{kind.allowed:g}",
            f"{agreement.same:,} of {agreement.n:,}",
        ]
        verdict = Text("yes", style="green") if each.agrees else Text("no: removed", style="red")
        table.add_row(each.name, *((kind.file,) if wide else ()), *cells, verdict)
    with io.StringIO() as file:
        console.console(file, width, _WIDE).print(table)
        return "".join(f"{line.rstrip()}\n" for line in file.getvalue().strip("\n").splitlines() if line.strip())


# --- the gate ---------------------------------------------------------------------------------------------------------------


def _register(name: str, wanted: Wanted, tracking: Mlflow, record: Record, model_id: str) -> str:
    """Registers a run's model if it passes; says what became of it."""
    target = f"{name}@{wanted.alias}"
    mine = tracking.predictions(record.run_id)
    current = registry.champion(tracking, name, wanted.alias)
    if current is not None and not current.run_id:
        raise UserError(
            f"Run {short(record.run_id)} was not registered: {target}, version {current.number}, comes from no run. It"
            " must come from one, to be compared with. Type another name, such as register=other."
        )
    if current is not None and current.run_id == record.run_id:
        return f"{target} is run {short(record.run_id)} already, as version {current.number}: nothing was registered."
    promotion_gate.check_verdict(record, target)
    tags = {"run": record.run_id, "verdict": record.tags["verdict"]}
    tags |= {
        metric: f"{record.metrics[metric]:.4f}"
        for metric in ("test/accuracy", "best/val_accuracy")
        if metric in record.metrics
    }
    beaten = "there was none before"
    if current is not None:
        other = tracking.record(current.run_id)
        pair = promotion_gate.beside(record, other, mine, tracking.predictions(other.run_id), target)
        promotion_gate.check_better(record, other, pair, wanted.alpha, target)
        beaten = f"beside version {current.number}, run {short(other.run_id)}, it has {pair}"
        tags |= {"beaten": other.run_id, "pair": str(pair)}
    made = registry.promote(
        tracking,
        name,
        wanted.alias,
        current,
        record,
        model_id,
        {key.replace("/", "."): value for key, value in tags.items()},
    )
    return f"{target} is version {made.number} now, run {short(record.run_id)}: {beaten}."


if __name__ == "__main__":
    cli.main(task, "export")
