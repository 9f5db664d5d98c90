"""The command `python -m dogbreeds.why attempt=…`: which of an attempt's knobs did it.

The attempt is run as it is, with one knob at a time put back to what its reference attempt has, with all but one put back, and with all of
them, over several seeds. A knob explains the mean of what it changes when it is put back alone and when it is put back last.
"""

import itertools
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dogbreeds import command
from dogbreeds.phase import Finetune
from dogbreeds.run import Run, from_config
from dogbreeds.spec import Refused, Spec, home, texts
from dogbreeds.sweep import Sweep
from dogbreeds.tracking import RANKING, Composition, Mlflow, short

log = logging.getLogger(__name__)

# Student's t, two-sided 95 %, for 1 to 9 degrees of freedom; beyond that the last is a little too wide.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

_ENOUGH = 0.9  # of what all knobs change together: one that gives it alone is enough by itself

Cell = frozenset[str]  # the settings that are put back


@dataclass(frozen=True)
class Effect:
    """What putting a knob back changes in validation accuracy, of each seed: alone, after all the others, and the mean of both."""

    knob: str
    alone: tuple[float, ...]
    last: tuple[float, ...]

    @property
    def explains(self) -> tuple[float, ...]:
        return tuple((first + second) / 2 for first, second in zip(self.alone, self.last, strict=True))


def cells(knobs: Sequence[str]) -> list[Cell]:
    """Nothing put back, each knob alone, all but one, and all."""
    everything = frozenset(knobs)
    found = [Cell(), *(Cell({knob}) for knob in knobs), *(everything - {knob} for knob in knobs), everything]
    return list(dict.fromkeys(found))


def effects(knobs: Sequence[str], measured: Mapping[Cell, Sequence[float]]) -> list[Effect]:
    """What each knob explains.

    Args:
        knobs: settings that were put back.
        measured: validation accuracy of each seed, in the same order in every cell.
    """
    everything = frozenset(knobs)
    return [Effect(knob, _differences(measured, Cell(), Cell({knob})), _differences(measured, everything - {knob}, everything)) for knob in knobs]


def _differences(measured: Mapping[Cell, Sequence[float]], before: Cell, after: Cell) -> tuple[float, ...]:
    return tuple(second - first for first, second in zip(measured[before], measured[after], strict=True))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The mean's 95 % interval by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    reach = _T95[min(len(values) - 2, len(_T95) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - reach, statistics.mean(values) + reach


def conclusion(found: Sequence[Effect], total: Sequence[float]) -> str:
    """Which knob did it, in a sentence."""
    whole = interval(total)
    if whole is None:
        return f"With one seed there is no interval: the knobs together change {_points(total)} points. Give why.seeds two or more."
    if whole[0] <= 0 <= whole[1]:
        return f"No knob stands out: putting all of them back changes {_said(total)} points, which noise could do. Give why.seeds more."
    clear = [effect for effect in found if not _straddles(effect.explains)]
    if not clear:
        return f"The knobs together change {_said(total)} points, but none of them stands out from noise: give why.seeds more."
    enough = [effect.knob for effect in clear if statistics.mean(effect.alone) / statistics.mean(total) >= _ENOUGH]
    if len(enough) > 1:
        return f"Putting back any one of {', '.join(enough)} is enough: by itself it gives {100 * _ENOUGH:.0f} % or more of {_said(total)} points."
    most = max(clear, key=lambda effect: abs(statistics.mean(effect.explains)))
    rest = sum(statistics.mean(effect.explains) for effect in found if effect is not most)
    return f"{most.knob} did most: it explains {_said(most.explains)} of {_points(total)} points, the others {100 * rest:+.1f}."


def _straddles(values: Sequence[float]) -> bool:
    found = interval(values)
    return found is None or found[0] <= 0 <= found[1]


def _points(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):+.1f}"


def _said(values: Sequence[float]) -> str:
    found = interval(values)
    return _points(values) + (f" ({100 * found[0]:+.1f} to {100 * found[1]:+.1f})" if found else "")


def report(knobs: Sequence[str], measured: Mapping[Cell, Sequence[float]], verdicts: Mapping[Cell, Sequence[str]]) -> str:
    """The accuracies of each cell, what each knob explains, and the conclusion, as Markdown."""
    lines = ["| put back | validation accuracy (%) | verdicts |", "| --- | --- | --- |"]
    for cell in cells(knobs):
        name = " ".join(knob for knob in knobs if knob in cell) or "nothing"
        words = ", ".join(f"{word.replace('_', ' ')} ({len(list(those))})" for word, those in itertools.groupby(sorted(verdicts[cell])))
        lines.append(f"| {name} | {' '.join(f'{100 * value:.1f}' for value in measured[cell])} | {words} |")
    lines += ["", "| knob put back | explains, points (95 % interval) | alone | after the others |", "| --- | --- | --- | --- |"]
    found = effects(knobs, measured)
    lines += [f"| {effect.knob} | {_said(effect.explains)} | {_said(effect.alone)} | {_said(effect.last)} |" for effect in found]
    total = _differences(measured, Cell(), frozenset(knobs))
    left = tuple(whole - sum(effect.explains[seed] for effect in found) for seed, whole in enumerate(total))
    if len(knobs) > 2:
        lines.append(f"| together, beyond that | {_said(left)} | | |")
    lines.append(f"| all | {_said(total)} | | |")
    return "\n".join([*lines, "", conclusion(found, total), ""])


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Wanted(Spec):
    group = "why"
    put_back: tuple[str, ...] = texts(example="[optimizer.lr=1e-3,head=linear]")


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="why")
def task(config: DictConfig) -> None:
    """Runs what has not been run yet, and says what each knob explains."""
    choices = HydraConfig.get().runtime.choices
    attempt = choices.get("attempt")
    typed = [override for override in HydraConfig.get().overrides.task if not override.startswith("why.")]
    knobs, seeds = _knobs(config, attempt), _seeds(config)
    tracking = from_config(config).tracking
    if not isinstance(tracking, Mlflow):
        raise Refused("tracking=none was chosen. The runs are compared through MLflow, which also remembers them. Type tracking=mlflow.")
    name = f"why {attempt or 'this'}: {' '.join(knobs)}"[:250]
    folder = Path(HydraConfig.get().runtime.output_dir)
    above = Sweep.open(tracking, Composition(OmegaConf.to_yaml(config), tuple(typed), name, folder))
    measured: dict[Cell, list[float]] = {}
    verdicts: dict[Cell, list[str]] = {}
    todo = [(cell, seed) for cell in cells(knobs) for seed in seeds]
    for number, (cell, seed) in enumerate(todo, 1):
        changes = [*sorted(cell), f"seed={seed}"]
        log.info("--- %d of %d: %s", number, len(todo), " ".join(changes))
        accuracy, verdict = _measured(tracking, _with(typed, changes), folder)
        measured.setdefault(cell, []).append(accuracy)
        verdicts.setdefault(cell, []).append(verdict)
    said = report(knobs, measured, verdicts)
    tracking.note(
        above, "why.md", said, {f"why/{effect.knob.split('=')[0]}": statistics.mean(effect.explains) for effect in effects(knobs, measured)}
    )
    print(f"\n{said}")


def _knobs(config: DictConfig, attempt: str | None) -> tuple[str, ...]:
    wanted = config.why.put_back
    if wanted is None:
        wanted = config.why.references.get(attempt)
    if wanted is None:
        raise Refused(
            f"attempt={attempt} has no reference in conf/why.yaml. It must be one of {', '.join(config.why.references)}, or its knobs must be "
            "named. Type attempt=finetune_50, or 'why.put_back=[optimizer.lr=1e-3]', for example."
        )
    knobs = _Wanted(put_back=tuple(wanted)).put_back
    if not knobs or not all("=" in knob for knob in knobs):
        raise Refused(f"why.put_back was {list(knobs)}. It must be a list of settings. Type 'why.put_back=[optimizer.lr=1e-3]', for example.")
    return knobs


def _seeds(config: DictConfig) -> list[int]:
    seeds = config.why.seeds
    if not OmegaConf.is_list(seeds) or not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise Refused(f"why.seeds was {seeds}. It must be a list of whole numbers of 0 or more. Type 'why.seeds=[0,1,2]', for example.")
    return list(seeds)


def _with(typed: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Overrides, with those that are changed replaced: Hydra refuses two options of a group."""
    changed = {change.split("=")[0] for change in changes}
    return [*(override for override in typed if override.lstrip("+").split("=")[0] not in changed), *changes]


def _measured(tracking: Mlflow, overrides: Sequence[str], folder: Path) -> tuple[float, str]:
    """Best validation accuracy and verdict of a run, from MLflow if it has been run already."""
    config = command.composed("train", overrides)
    run = from_config(config)
    if isinstance(run.phase, Finetune) and run.phase.parent is None:
        _need_parent(tracking, overrides, folder)
    return _found_or_run(tracking, run, config, overrides, folder)


def _need_parent(tracking: Mlflow, overrides: Sequence[str], folder: Path) -> None:
    """Runs the frozen attempt of the same seed, unless it has been."""
    settings = [override for override in overrides if not override.lstrip("+").startswith(("attempt=", "phase", "unfreeze", "optimizer"))]
    frozen = ["attempt=frozen", *settings]
    config = command.composed("train", frozen)
    _found_or_run(tracking, from_config(config), config, frozen, folder)


def _found_or_run(tracking: Mlflow, run: Run, config: DictConfig, overrides: Sequence[str], folder: Path) -> tuple[float, str]:
    known = tracking.records(f"params.key = '{run.key}'")
    if known:
        log.info("already there: run %s", short(known[0].run_id))
        return known[0].metrics.get(RANKING, 0.0), known[0].tags["verdict"]
    from dogbreeds.attempt import Result, execute

    result = execute(run, Composition(OmegaConf.to_yaml(config), tuple(overrides), " ".join(overrides)[:250], folder))
    if not isinstance(result, Result):
        raise Refused("phase=lr_range was asked about. It trains nothing that could be explained. Type phase=frozen or phase=finetune.")
    return result.objective, result.verdict.name


if __name__ == "__main__":
    command.main(task, "why")
