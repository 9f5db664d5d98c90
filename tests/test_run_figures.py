"""Figures that compare runs, and the page of a sweep."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex

from dogbreeds.reports import run_figures
from dogbreeds.reports.attempts_rendering import as_html
from dogbreeds.reports.attempts_table import build_tables
from dogbreeds.reports.run_figures import ComparedRun
from dogbreeds.tracking.records import Record
from tests.test_table import record, run_url


def compared(name: str, verdict: str = "learned", accuracies: Sequence[float] = (0.5, 0.8), **settings) -> ComparedRun:
    metrics = {"best/val_accuracy": max(accuracies), "reference/val_accuracy": 0.75}
    params = {"data.images.val": "400", "optimizer.lr": "0.001", "unfreeze.layers_trained": "0"} | settings
    return ComparedRun.of(name, Record(name, name, 0, "FINISHED", params, metrics, {"verdict": verdict}), accuracies)


RUNS = [
    compared("frozen"),
    compared("fast", "collapsed", (0.6, 0.1), **{"optimizer.lr": "0.1"}),
    compared("deep", "better_than_frozen", (0.7, 0.9), **{"unfreeze.layers_trained": "40"}),
]


def test_curves_have_the_colour_of_their_verdict_and_the_reference_line() -> None:
    *curves, reference = run_figures.accuracy_curves(RUNS).axes[0].get_lines()
    assert {line.get_label(): (to_hex(line.get_color()), list(line.get_ydata())) for line in curves} == {
        "deep: best 90.0 %": ("#1f5fa8", [70, 90]),
        "frozen: best 80.0 %": ("#17692f", [50, 80]),
        "fast: best 60.0 %": ("#a3261b", [60, 10]),
    }
    assert (reference.get_label(), set(reference.get_ydata())) == ("reference 75.0 %", {75.0})


def test_runs_of_one_name_share_an_entry_of_the_legend_and_many_runs_are_named_by_verdict() -> None:
    seeds = [compared("frozen"), compared("frozen", accuracies=(0.5, 0.9))]
    legend = run_figures.accuracy_curves(seeds).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["frozen: best 85.0 %", "reference 75.0 %"]
    many = [compared(f"run {n}", ("learned", "collapsed")[n % 2]) for n in range(40)]
    legend = run_figures.accuracy_curves(many).axes[0].get_legend()
    names = {text.get_text() for text in legend.get_texts()}
    assert names == {"learned (20)", "collapsed (20)", "reference 75.0 %"}


def test_accuracy_over_the_rate_has_intervals_and_an_arrow_to_the_end_of_a_collapse() -> None:
    figure = run_figures.accuracy_over_lr(RUNS)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    low, high = RUNS[0].best.interval
    bars = [segment for bar in axes.collections for segment in bar.get_segments()]
    assert any(bar[:, 1] == pytest.approx([100 * low, 100 * high]) and bar[0, 0] == 0.001 for bar in bars)
    (arrow,) = axes.texts
    assert (arrow.xy, arrow.xyann) == ((0.1, 10.0), (0.1, 60.0))


def test_a_setting_that_all_runs_share_has_no_figure() -> None:
    assert run_figures.accuracy_over_layers(RUNS[:2]) is None
    assert run_figures.accuracy_over_layers(RUNS) is not None
    assert len(run_figures.overview(RUNS[:2], "sweep").axes) == 2
    assert len(run_figures.overview(RUNS, "sweep").axes) == 3
    assert run_figures.accuracy_over_lr([compared("bad", **{"optimizer.lr": "?"}), compared("none")]) is None


def test_page_of_a_sweep_has_its_runs_their_figures_in_words_and_their_cost() -> None:
    records = [
        replace(
            record("frozen"), metrics=record("frozen").metrics | {"seconds/total": 100.0, "seconds/features": 40.0}
        ),
        record("lr_collapse"),
    ]
    histories = {run.run_id: [0.5, run.metrics["best/val_accuracy"]] for run in records}
    page = as_html(build_tables(records, histories.__getitem__, all_runs=True), run_url, "sweep lr", runs_only=True)
    assert "<h1>sweep lr</h1>" in page
    assert "finetune_50" not in page
    assert page.count("<svg") == 2
    assert page.count('<svg role="img" aria-label="') == page.count("lr_collapse: best ") - 1
    assert "2 runs in 1 min 40 s, of which 40 s before" in page
    whole = as_html(build_tables(records, histories.__getitem__, all_runs=True), run_url)
    assert "finetune_50" in whole
