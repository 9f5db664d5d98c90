"""The command `python -m dogbreeds.compare first=… second=…`: whether two attempts differ, and on which breeds."""

from dataclasses import dataclass

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import integer, number, one_of, text
from dogbreeds.evaluation import paired_comparison
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.recorded_runs import Only, find, store
from dogbreeds.reports import comparison_rendering
from dogbreeds.reports.output import Output
from dogbreeds.reports.run_comparison import Difference
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, short


@dataclass(frozen=True, kw_only=True)
class Wanted(Output):
    """Which attempts are compared, on what, and how that is shown."""

    first: str | None = text(example="best", optional=True)
    second: str | None = text(example="latest", optional=True)
    split: str | None = one_of("val", "test", optional=True)
    alpha: float = number(above=0, below=1, example=0.01)
    breeds: int = integer(at_least=1, example=10)
    ui: str = text(example="http://127.0.0.1:5000")


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="compare")
@cli.alone
def task(config: DictConfig) -> None:
    """Compares, and prints or writes what is found."""
    names = ("first", "second", "split", "alpha", "breeds", "ui", "format", "output")
    wanted, only = Wanted(**{name: cli.word(config, name) for name in names}), Only(**config["only"])
    tracking = store(config, "Two attempts are compared by what MLflow keeps of them.")
    first, second = (_found(tracking, getattr(wanted, key), only, key) for key in ("first", "second"))
    split, ours, theirs = _predictions(tracking, first, second, wanted.split)
    found = Difference(first, second, paired_comparison.compare(ours, theirs, split), wanted.alpha, wanted.breeds)
    wanted.deliver(_rendered(found, wanted, tracking), "compare")


def _found(tracking: Mlflow, run: str | None, only: Only, key: str) -> Record:
    if run is None:
        newest = [short(record.run_id) for record in tracking.records() if only.holds(record)][:3]
        there = f"; the newest runs are {', '.join(newest)}" if newest else ""
        raise UserError(
            f"{key} was not given. Two attempts are compared, each latest, best or the beginning of its run's"
            f" id{there}. Type first=best second=latest, for example."
        )
    return find(tracking, run, only, key, network=False)


def _predictions(
    tracking: Mlflow, first: Record, second: Record, wanted: str | None
) -> tuple[str, Predictions, Predictions]:
    """What both said in a split, and which it is."""
    ours, theirs = tracking.predictions(first.run_id), tracking.predictions(second.run_id)
    for key, record, said in (("first", first, ours), ("second", second, theirs)):
        if not said:
            raise UserError(
                f"{key}, run {short(record.run_id)} ({record.tags['verdict'].replace('_', ' ')}), has no predictions:"
                f" it finished no epoch, or they were removed. Both must have some. Type {key}=<another run>."
            )
    both = sorted(ours.keys() & theirs.keys())
    split = wanted or ("test" if "test" in both else "val")
    if split not in both:
        raise UserError(
            f"split={split} is not recorded of both runs. They have {' and '.join(both)} in common. Type"
            f" split={both[0]}."
        )
    return split, ours[split], theirs[split]


def _rendered(found: Difference, wanted: Wanted, tracking: Mlflow) -> str:
    def address(record: Record) -> str:
        return tracking.page(record, wanted.ui)

    if wanted.format == "html":
        return comparison_rendering.as_html(found, address)
    if wanted.format == "csv":
        return comparison_rendering.as_csv(found)
    if wanted.format == "markdown":
        return comparison_rendering.as_markdown(found, address)
    return comparison_rendering.as_text(found, wanted.width, address)


if __name__ == "__main__":
    cli.main(task, "compare")
