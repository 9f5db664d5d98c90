"""The report of a study: tables of seconds and of ratios as Markdown, and a picture of cost over photos and runs."""

from pathlib import Path

from tests.bench.speed.study import FINETUNES, RUNS, Cost, Plan, Study
from tests.bench.speed.ways import KerasExample, PredictThenFit

_WORKS = (*(("runs", count) for count in RUNS), *(("fine-tunes", count) for count in FINETUNES))


def tables(study: Study) -> str:
    """Return the tables; what is extrapolated has a tilde."""
    lines = []
    for plan in study.plans:
        rates = ", ".join(f"{name} {rate:.1f}" for name, rate in study.rates(plan).items())
        lines += [f"\n### {plan.setup.name}, {plan.setup.epochs} epochs a run", f"\nBare loops, images/s: {rates}.\n"]
        for photos in plan.setup.counts:
            lines += [*_table(study, plan, photos), ""]
    missing = [f"{way.name}: {way.missing}." for way in study.ways if way.missing]
    return "\n".join([*lines, "~ is extrapolated from a measured cost per epoch, run and image.", *missing])


def _table(study: Study, plan: Plan, photos: int) -> list[str]:
    headings = [f"{count} {_named(work, count)}" for work, count in _WORKS]
    first = [f"| {photos:,} photos, seconds | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}"]
    rows = {}
    for way in study.ways:
        costs = [study.cost(plan, way, work, photos, count) for work, count in _WORKS]
        if any(costs):
            rows[way.name] = costs
    lines = [f"| {name} | {' | '.join(map(_seconds, costs))} |" for name, costs in rows.items()]
    bare = f"{study.limit(plan, photos):.1f}"
    lines.append(f"| bare pass of the fastest engine | {' | '.join([bare] * len(RUNS))} {'| – ' * len(FINETUNES)}|")
    return [*first, *lines, "", *_ratios(rows, photos)]


def _ratios(rows: dict[str, list[Cost | None]], photos: int) -> list[str]:
    """Return how many times as long the ways of Keras take as each other way."""
    headings = [f"{count} {_named(work, count)}" for work, count in _WORKS]
    lines = []
    for reference in (PredictThenFit.name, KerasExample.name):
        for name, costs in rows.items():
            if reference in rows and name not in (PredictThenFit.name, KerasExample.name):
                ratios = [_ratio(theirs, ours) for theirs, ours in zip(rows[reference], costs, strict=True)]
                lines.append(f"| {reference} / {name} | {' | '.join(ratios)} |")
    return [f"| {photos:,} photos, ratios | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}", *lines]


def _named(work: str, count: int) -> str:
    return work.removesuffix("s") if count == 1 else work


def _seconds(cost: Cost | None) -> str:
    return "–" if cost is None else f"{'' if cost.is_measured else '~'}{cost.seconds:.1f}"


def _ratio(theirs: Cost | None, ours: Cost | None) -> str:
    if theirs is None or ours is None:
        return "–"
    return f"{'' if theirs.is_measured and ours.is_measured else '~'}{theirs.seconds / ours.seconds:.2f}"


def draw(study: Study, file: Path) -> None:
    """Draw the cost of one run over photos, and of sweeps over runs, for each backbone; save the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4 * len(study.plans)), layout="constrained")
    grid = figure.subplots(len(study.plans), 2, squeeze=False)
    for plan, (by_photos, by_runs) in zip(study.plans, grid, strict=True):
        counts = plan.setup.counts
        for way in study.ways:
            over_photos = [study.cost(plan, way, "runs", photos, 1) for photos in counts]
            over_runs = [study.cost(plan, way, "runs", counts[0], number) for number in RUNS]
            for axes, places, costs in ((by_photos, counts, over_photos), (by_runs, RUNS, over_runs)):
                known = [(place, cost) for place, cost in zip(places, costs, strict=True) if cost is not None]
                if not known:
                    continue
                is_measured = all(cost.is_measured for _, cost in known)
                style = {"marker": "o", "linestyle": "-" if is_measured else "--", "label": way.name}
                axes.plot([place for place, _ in known], [cost.seconds for _, cost in known], **style)
        by_photos.plot(
            counts, [study.limit(plan, photos) for photos in counts], "k:", label="bare pass, fastest engine"
        )
        by_photos.set(title=f"{plan.setup.name}: one run", xlabel="photos", ylabel="seconds", yscale="log")
        by_runs.set(title=f"{plan.setup.name}: {counts[0]:,} photos", xlabel="runs", yscale="log", xscale="log")
        by_runs.set_xticks(RUNS, list(map(str, RUNS)))
        by_photos.set_xticks(counts, [f"{photos:,}" for photos in counts])
        for axes in (by_photos, by_runs):
            axes.grid(alpha=0.3)
        by_runs.legend(fontsize=7)
    figure.supxlabel("dashed: extrapolated in part", fontsize=8)
    figure.savefig(file)
