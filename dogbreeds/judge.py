"""The command `python -m dogbreeds.judge history=…`: the verdict of any training, from its learning curves."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dogbreeds import cli
from dogbreeds.core import console, files
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import Spec, one_of, path, text
from dogbreeds.core.text import printable, received, visible
from dogbreeds.evaluation.history_curves import ROLES, curves_of_points
from dogbreeds.evaluation.history_files import find_histories, read_history
from dogbreeds.evaluation.history_verdict import TrainingFacts, judge_training
from dogbreeds.evaluation.verdict import Verdict
from dogbreeds.experiments.compose import settings_of
from dogbreeds.experiments.recorded_runs import mlflow_tracking

# Format by the suffix of an output file.
_FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json"}

History = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingFacts):
    """Settings of the command.

    Attributes:
        run: beginning of the id of an MLflow run; None for files.
        format: `text` or `json`; null for the one that the output's suffix names, or text.
        output: path of the file to write; None prints.
    """

    run: str | None = text(example="3f2a9c41", optional=True)
    format: str = one_of("text", "json", optional=True)
    output: str | None = path(example="verdicts.json", optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format is None:
            object.__setattr__(self, "format", files.format_of(self.output, _FORMATS, default="text"))


@dataclass(frozen=True, kw_only=True)
class Names(Spec):
    """Names of the curves, by role; None for those that are recognised."""

    group = "names"
    epoch: str | None = text(example="epoch", optional=True)
    accuracy: str | None = text(example="train/acc", optional=True)
    loss: str | None = text(example="train/loss", optional=True)
    val_accuracy: str | None = text(example="valid/acc", optional=True)
    val_loss: str | None = text(example="valid/loss", optional=True)
    lr: str | None = text(example="lr", optional=True)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="judge")
@cli.standalone
def task(config: DictConfig) -> None:
    """Judge each history, and print or write the verdicts."""
    plain = {field.name: config[field.name] for field in dataclasses.fields(Settings) if field.name in config}
    settings = Settings(**plain | {"run": cli.typed_value(config, "run"), "optimizer": _optimizer(config)})
    given = dataclasses.asdict(Names(**settings_of(config, "names", *ROLES)))
    curves = {role: name for role, name in given.items() if name is not None}
    histories = list(_histories(config, settings, curves))
    failed = 0
    with files.output_stream(settings.output, "verdicts.json") as output:
        for name, load in histories:
            try:
                verdict = judge_training(load(), settings, curves if settings.run is None else {})
            except (UserError, MissingFileError) as error:
                message = str(error) if name in str(error) else f"{name}: {error}"
                if len(histories) == 1:
                    raise type(error)(message) from error
                failed += 1
                print(f"error: {message}", file=sys.stderr, flush=True)
                if settings.format == "json":
                    output.write(_json({"history": name, "error": message}))
                continue
            output.write(_rendered(name if len(histories) > 1 else "", verdict, settings))
    if settings.output is not None:
        print(settings.output)
    if failed:
        sys.exit(f"error: {failed} of {len(histories)} histories could not be judged; see the messages above.")


def _optimizer(config: DictConfig) -> str | None:
    """Return the class of the optimizer. It is an option of the config group, since Hydra takes that name for one."""
    return str(config.optimizer._target_).rpartition(".")[2] if "optimizer" in config else None


def _histories(
    config: DictConfig, settings: Settings, names: Mapping[str, str]
) -> Iterator[tuple[str, Callable[[], History]]]:
    """Yield the name of each history, for people, and the function that reads it."""
    given = OmegaConf.to_container(config)["history"]  # type: ignore[call-overload,index]
    if (given is None) == (settings.run is None):
        raise UserError(
            f"history was {received(given)} and run was {received(settings.run)}. One of them names what is judged:"
            " files, or a run of MLflow. Type history=log.csv, for example."
        )
    if settings.run is not None:
        tracking = mlflow_tracking(config, "The metrics of a run are read from MLflow.")
        record = tracking.find_any_run(settings.run.lower())
        yield f"run {record.run_id}", lambda: curves_of_points(tracking.points(record), names)
        return
    for place in find_histories(given):
        yield printable(place), lambda place=place: read_history(place)  # type: ignore[misc]


def _rendered(name: str, verdict: Verdict, settings: Settings) -> str:
    """Return the verdict of a history as a line; the name of the only history is left out."""
    if settings.format == "json":
        evidence = {key: value if math.isfinite(value) else None for key, value in verdict.numbers.items()}
        named = {"history": name} if name else {}
        fields = {"verdict": verdict.name, "reason": verdict.reason, "advice": verdict.advice, "evidence": evidence}
        return _json({**named, **fields})
    width = console.terminal_width(sys.stdout) if settings.output is None else None
    return f"{console.fitted(visible(f'{name}: {verdict}' if name else str(verdict)), width)}\n"


def _json(fields: Mapping[str, Any]) -> str:
    return f"{json.dumps(fields, ensure_ascii=False)}\n"


if __name__ == "__main__":
    cli.main(task, "judge")
