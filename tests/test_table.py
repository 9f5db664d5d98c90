"""Attempts tables: rows, notes and renderings, from records as MLflow returns them."""

import csv
import io
import re
from dataclasses import replace

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.experiments.recorded_runs import Only
from dogbreeds.reports.attempts_rendering import as_csv, as_html, as_markdown, as_text
from dogbreeds.reports.attempts_table import build_tables, missing_attempts
from dogbreeds.table import Settings, _render
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record

CURVES = {
    "torch_pixels": [0.008, 0.006],
    "lr_collapse": [0.354, 0.22, 0.05],
    "frozen": [0.787, 0.919, 0.912],
    "finetune_50": [0.92, 0.927],
    "keras_finetune": [0.75, 0.76],
    "keras_split_block": [0.71, 0.72],
}
# Attempts that the table's fixture has.
GUIDE = ("torch_pixels", "lr_collapse", "frozen", "finetune_50")
VERDICTS = {
    "torch_pixels": "never_learned",
    "lr_collapse": "collapsed",
    "frozen": "learned",
    "finetune_50": "better_than_frozen",
    "keras_finetune": "no_better_than_frozen",
    "keras_split_block": "worse_than_frozen",
}
# Validation accuracy of the reference probe. A version that recorded none trained lr_collapse.
REFERENCES = {"torch_pixels": 0.012, "frozen": 0.881, "finetune_50": 0.881}


def record(attempt: str, seed: int = 0, started: float = 0, model: str = "Miniature", **changes: str) -> Record:
    finetune = attempt in ("finetune_50", "keras_finetune", "keras_split_block")
    params = {
        "model.architecture": model,
        "data.name": "miniature",
        "data.images.val": "1200",
        "data.images.train": "2400",
        "data.classes": "120",
        "phase": "Finetune" if finetune else "Frozen",
        "preprocessing.mode": "torch" if attempt == "torch_pixels" else "raw",
        "optimizer.lr": "0.01" if attempt == "lr_collapse" else "1e-05" if finetune else "0.001",
        "unfreeze": "LastN" if finetune else "Nothing",
        "unfreeze.layers_trained": "46" if finetune else "0",
        "unfreeze.layers_asked": "50" if finetune else "0",
        "unfreeze.batchnorm": "affine",
        "seed": str(seed),
    }
    tags = {
        "verdict": VERDICTS[attempt],
        "choice.attempt": attempt,
        "choice.model": "miniature",
        "choice.data": "miniature",
    }
    tags |= {key: value for key, value in changes.items() if key == "attempt.changed"}
    return Record(
        f"{attempt}-{seed}-{started}",
        f"run of {attempt}",
        started,
        "FINISHED",
        params,
        {"best/val_accuracy": max(CURVES[attempt]) + seed / 1000}
        | ({"reference/val_accuracy": REFERENCES[attempt] + seed / 1000} if attempt in REFERENCES else {}),
        tags,
        "7",
    )


def run_url(of: Record) -> str:
    return f"http://mlflow/#/experiments/{of.experiment_id}/runs/{of.run_id}"


def history(run_id: str) -> list[float]:
    return CURVES[run_id.split("-")[0]]


@pytest.fixture
def table():
    (only_table,) = build_tables([record(name) for name in reversed(GUIDE)], history)
    return only_table


def test_table_lists_the_guide_s_attempts_in_its_order_with_measured_results(table) -> None:
    headings, *lines = table.text_rows()
    assert headings[:6] == ["attempt", "phase", "pixels", "learning rate", "layers unfrozen", "BatchNorm"]
    assert lines == [
        [
            "torch_pixels",
            "frozen",
            "torch",
            "0.001",
            "0 (frozen)",
            "–",
            "0.8 %",
            "1,200",
            "0.5–1.5",
            "1.2 %",
            "never learned",
            "1–5 %",
            "outcome reproduced",
        ],
        [
            "lr_collapse",
            "frozen",
            "raw",
            "0.01",
            "0 (frozen)",
            "–",
            "35.4 → 5.0 %",
            "1,200",
            "32.8–38.2",
            "–",
            "collapsed",
            "43 → 14 %",
            "outcome reproduced",
        ],
        [
            "frozen",
            "frozen",
            "raw",
            "0.001",
            "0 (frozen)",
            "–",
            "91.9 %",
            "1,200",
            "90.2–93.3",
            "88.1 %",
            "learned",
            "93.7 %",
            "outcome reproduced",
        ],
        [
            "finetune_50",
            "finetune",
            "raw",
            "1e-5",
            "46 of 50 asked",
            "affine",
            "92.7 %",
            "1,200",
            "91.1–94.0",
            "88.1 %",
            "better than frozen",
            "92.9 %",
            "outcome refuted",
        ],
        ["finetune_20", *["–"] * 10, "to be tested", "not tested here"],
    ]
    assert (
        "finetune_50: the claimed verdict is refuted: no better than frozen or worse than frozen in 0 of 1 seed,"
        " otherwise better than frozen." in table.notes()
    )
    assert any(
        note.endswith("Type python -m dogbreeds.train attempt=finetune_20 model=miniature data=miniature.")
        for note in table.notes()
    )
    assert any(note.startswith("The accuracies of the guide are not tested here") for note in table.notes())


def test_table_compares_two_attempts_seed_by_seed() -> None:
    asked = []

    def pair(first: Record, second: Record) -> PairedOutcome:
        asked.append((first.run_id, second.run_id))
        return PairedOutcome(10, 60, 1200, "test")

    records = [
        *(record("keras_finetune", seed, started=1) for seed in (0, 1, 2)),
        *(record("keras_split_block", seed, started=2) for seed in (0, 2, 3)),
    ]
    (table,) = build_tables(records, history, pair)
    assert asked == [(f"keras_finetune-{seed}-1", f"keras_split_block-{seed}-2") for seed in (0, 2)]
    row = next(row for row in table.rows if row.attempt == "keras_split_block")
    assert row.outcome_check.reason.startswith("worse than keras_finetune in 2 of 2 seeds: -4.2 points on test ")
    assert (row.cells()["claimed"], row.cells()["claim"]) == ("significantly harms", "outcome reproduced")
    # No prediction is read for an attempt that is not compared.
    assert [row.pairs for row in table.rows if row.attempt == "keras_finetune"] == [()]


def test_table_puts_seeds_in_one_row_and_leaves_out_older_runs() -> None:
    old, newest = record("frozen", 0, started=1), record("frozen", 0, started=2)
    (table,) = build_tables([record("frozen", 2, started=3), newest, record("frozen", 1, started=1.5), old], history)
    row = table.rows[2]
    assert [one.run_id for one in row.records] == ["frozen-2-3", "frozen-0-2", "frozen-1-1.5"]
    assert row.cells()["result"] == "92.0 % (91.9–92.1, 3 seeds)"
    assert row.cells()["reference"] == "88.2 %"
    assert row.cells()["verdict"] == "learned"
    assert row.outcome_check.reason == "learned in 3 of 3 seeds"
    (all_runs,) = build_tables([newest, old], history, all_runs=True)
    assert [row.attempt for row in all_runs.rows if row.records] == ["frozen", "frozen"]


def test_table_does_not_average_runs_with_different_settings() -> None:
    other = record("frozen", 1)
    other.params["phase.epochs"] = "3"
    (table,) = build_tables([record("frozen", 0), other], history)
    assert [one.run_id for one in table.rows[2].records] == ["frozen-0-0"]


def test_table_does_not_test_the_claim_of_a_changed_attempt() -> None:
    (table,) = build_tables([record("frozen", **{"attempt.changed": "optimizer.lr=0.1"})], history)
    assert table.rows[2].outcome_check.status == "not tested here"
    assert "frozen: the claimed verdict is not tested here: it was run with optimizer.lr=0.1." in table.notes()[2]


def test_table_prefers_an_unchanged_attempt_to_a_newer_changed_one() -> None:
    (table,) = build_tables(
        [record("frozen", started=2, **{"attempt.changed": "head=Linear"}), record("frozen", started=1)], history
    )
    assert [one.run_id for one in table.rows[2].records] == ["frozen-0-1"]


def test_tables_are_separate_for_different_data() -> None:
    few = record("frozen")
    few.params["data.classes"] = "5"
    assert len(build_tables([record("frozen"), few], history)) == 2


def test_table_has_no_result_for_a_run_without_a_finished_epoch() -> None:
    diverged = record("frozen")
    diverged.metrics.clear()
    diverged.tags["verdict"] = "diverged"
    (table,) = build_tables([diverged], lambda run_id: [])
    cells = table.rows[2].cells()
    assert (cells["result"], cells["interval"], cells["verdict"], cells["claim"]) == (
        "–",
        "–",
        "diverged",
        "outcome refuted",
    )
    assert [run.accuracies for run in table.compared_runs()] == [()]


def test_table_histories_include_every_run() -> None:
    (table,) = build_tables([record("frozen", started=2), record("frozen", started=1)], history, all_runs=True)
    assert [run.name for run in table.compared_runs()] == ["run of frozen", "run of frozen"]


def test_missing_attempts_are_named_once_with_the_command_that_runs_them(table) -> None:
    # A fine-tune's parent comes first.
    assert missing_attempts([table]) == (
        "Not tested here: resnet50_frozen, resnet50_finetune_50, keras_frozen, keras_no_augmentation,"
        " keras_small_batches, keras_ema, keras_finetune, keras_batchnorm, keras_split_block: not run. Type python -m"
        " dogbreeds.train attempt=resnet50_frozen."
    )
    assert as_html([table, table], run_url).count("Not tested here: resnet50_frozen") == 1


def test_tables_are_separate_for_different_models_which_only_selects() -> None:
    records = [record("frozen"), record("frozen", model="EfficientNetB0")]
    assert [table.title for table in build_tables(records, history)] == [
        f"{name} on miniature, 120 classes, 2,400 training images" for name in ("Miniature", "EfficientNetB0")
    ]
    assert [
        Only(model=name, data=None).holds(records[1]) for name in ("effnetb0", "efficientnetb0", "EfficientNetB0")
    ] == [False, True, True]
    assert Only(model="miniature", data="miniature").holds(records[0])
    assert not Only(model=None, data="stanford_dogs").holds(records[0])


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_text_fits_the_terminal_s_width(table, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    rendered = as_text(table, width, run_url)
    text = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", rendered)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    assert ("layers" in text) == (width >= 150)
    # There is no column for the reference probe in a terminal: a note has it.
    note = "Reference probe, validation accuracy: 1.2 % (torch_pixels); 88.1 % (frozen, finetune_50)."
    assert note in " ".join(text.split())
    assert text.count("88.1 %") == 1
    # Without a terminal there is a column, and no note.
    assert as_text(table, None, run_url).count("88.1 %") == 2
    # Attempt names are not wrapped.
    assert all(re.search(rf"^ {name} ", text, re.MULTILINE) for name in GUIDE)
    # The short id is a hyperlink to the run.
    assert (f"{run_url(table.rows[1].records[0])}\x1b\\lr_colla\x1b" in rendered) == (width >= 80)


def test_renderings_link_the_run_of_each_seed() -> None:
    (table,) = build_tables([record("frozen", 1, started=2), record("frozen", 0, started=1)], history)
    markdown = as_markdown(table, run_url)
    assert (
        "| [frozen-1](http://mlflow/#/experiments/7/runs/frozen-1-2),"
        " [frozen-0](http://mlflow/#/experiments/7/runs/frozen-0-1) |" in markdown
    )
    rows = list(csv.DictReader(io.StringIO(as_csv([table], run_url))))
    assert (
        rows[2]["links"]
        == "http://mlflow/#/experiments/7/runs/frozen-1-2 http://mlflow/#/experiments/7/runs/frozen-0-1"
    )
    page = as_html([table], run_url)
    # In the first column, which stays in sight when the table scrolls.
    (cell,) = re.findall(r'<tr><td class="attempt">frozen(.*?)</td>', page)
    assert re.findall(r'<br><a href="(.*?)" title="run (.*?)">(.*?)</a>', cell) == [
        (rows[2]["links"].split()[0], "frozen-1-2", "frozen-1"),
        (rows[2]["links"].split()[1], "frozen-0-1", "frozen-0"),
    ]
    lines = as_text(table, None, run_url).splitlines()
    assert [line.split()[-1] for line in lines if "frozen-" in line] == ["frozen-1", "frozen-0"]


def test_text_and_legend_shorten_a_run_s_name_of_overrides() -> None:
    named = replace(record("frozen"), name="effnetb0 frozen data.root=/somewhere/else/photos optimizer.lr=0.001")
    named.tags.pop("choice.attempt")
    (table,) = build_tables([named], history, all_runs=True)
    names = [line[1:15].strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", as_text(table, 65, run_url)).splitlines()]
    start = names.index("effnetb0")
    # In the legend of the learning curves.
    assert "effnetb0 frozen … e/else/photos optimizer.lr=0.001: best 91.9 %" in as_html([table], run_url)
    assert names[start : start + 6] == ["effnetb0", "frozen", "data.root=…/p", "hotos", "optimizer.lr=", "0.001"]


@pytest.mark.parametrize(("width", "root"), [(200, "…/photos"), (None, "/somewhere/else/photos")])
def test_text_does_not_wrap_a_run_s_name_where_there_is_room(width: int | None, root: str) -> None:
    named = replace(record("frozen"), name="effnetb0 frozen data.root=/somewhere/else/photos optimizer.lr=0.001")
    named.tags.pop("choice.attempt")
    (table,) = build_tables([named], history, all_runs=True)
    assert f" effnetb0 frozen data.root={root} optimizer.lr=0.001  frozen  raw " in as_text(table, width, run_url)


@pytest.mark.parametrize("width", [60, 80, 150])
def test_all_lines_of_the_command_fit_the_terminal(table, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dogbreeds.reports.output.terminal_width", lambda stream: width)
    settings = Settings(runs="newest", ui="http://x", format="text", output=None)
    text = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", _render([table], settings, run_url))
    assert max(map(len, text.splitlines())) <= width
    assert missing_attempts([table]) == " ".join(text.split("\n\n")[-1].split())


@pytest.mark.parametrize(
    ("uri", "ui", "url"),
    [
        (
            "sqlite:///mlflow.db",
            "http://127.0.0.1:5000",
            "http://127.0.0.1:5000/#/experiments/7/runs/frozen-0-0?workflowType=machine_learning",
        ),
        (
            "sqlite:///mlflow.db",
            "https://lab.example/mlflow/",
            "https://lab.example/mlflow/#/experiments/7/runs/frozen-0-0?workflowType=machine_learning",
        ),
        (
            "https://me:secret@lab.example:8443",
            "http://127.0.0.1:5000",
            "https://lab.example:8443/#/experiments/7/runs/frozen-0-0?workflowType=machine_learning",
        ),
    ],
)
def test_run_url_is_on_the_tracking_server_or_for_a_local_store_on_the_ui(uri: str, ui: str, url: str) -> None:
    tracking = Mlflow(
        uri=uri, artifacts="a", experiment="e", model="best", system_metrics_seconds=0, patience_minutes=0, ui=ui
    )
    assert tracking.run_url(record("frozen"), ui) == url
    with pytest.raises(UserError, match=r"ui was 'javascript:x'\. .* http:// or https://.* Type ui=http"):
        replace(tracking, uri="sqlite:///mlflow.db").run_url(record("frozen"), "javascript:x")


def test_markdown_csv_and_html_have_the_same_results(table) -> None:
    markdown = as_markdown(table, run_url)
    assert (
        "| lr_collapse | frozen | raw | 0.01 | 0 (frozen) | – | 35.4 → 5.0 % | 1,200 | 32.8–38.2 | – | collapsed | 43 →"
        " 14 % | outcome reproduced | [lr_colla](" in markdown
    )
    rows = list(csv.DictReader(io.StringIO(as_csv([table], run_url))))
    assert [row["attempt"] for row in rows] == ["torch_pixels", "lr_collapse", "frozen", "finetune_50", "finetune_20"]
    assert rows[1]["result"] == "35.4 → 5.0 %"
    assert rows[1]["runs"] == "lr_collapse-0-0"
    assert [row["reference"] for row in rows] == ["1.2 %", "–", "88.1 %", "88.1 %", "–"]
    page = as_html([table], run_url)
    # Curves, and accuracy over the learning rate and over the layers trained.
    assert page.count("<svg") == 3
    assert "35.4\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}5.0&nbsp;%" in page
    assert page.count("88.1&nbsp;%") + page.count("88.1\N{NO-BREAK SPACE}%") == 2
    assert "src=" not in page
    assert set(re.findall(r'href="(http[^"]*)"', page)) == {
        run_url(row.records[0]) for row in table.rows if row.records
    }
    assert "finetune_50: best 92.7 %" in page


@pytest.mark.slow
def test_table_command_reads_recorded_runs(command, tmp_path) -> None:
    nothing = command("table")
    assert nothing.returncode == 1
    assert "has no finished attempt." in nothing.stderr
    assert "Type make table, or python -m dogbreeds.train attempt=frozen." in nothing.stderr
    fewer = ("data.train_per_class=16", "data.val_per_class=4", "data.test_per_class=1", "preflight=none")
    ran = command(
        "train",
        "--multirun",
        "attempt=lr_collapse,frozen",
        "phase.epochs=4",
        *fewer,
        "tracking.system_metrics_seconds=0",
    )
    assert ran.returncode == 0, ran.stderr
    printed = command("table", "format=csv")
    rows = {row["attempt"]: row for row in csv.DictReader(io.StringIO(printed.stdout))}
    assert (rows["lr_collapse"]["verdict"], rows["lr_collapse"]["claim"]) == ("collapsed", "outcome reproduced")
    assert (rows["frozen"]["verdict"], rows["frozen"]["claim"]) == ("learned", "outcome reproduced")
    assert rows["finetune_20"]["claim"] == "not tested here"
    page = f"http://dogbreeds.localhost:5000/#/experiments/1/runs/{rows['frozen']['runs']}"
    assert rows["frozen"]["links"] == f"{page}?workflowType=machine_learning"
    page = command("table", "format=html", f"output={tmp_path}/out/page.html")
    assert page.stdout.strip() == f"{tmp_path}/out/page.html"
    assert "reproduced" in (tmp_path / "out/page.html").read_text()
    for arguments, message in (
        (["only.model=effnetb4"], "has no finished attempt with only.model=effnetb4."),
        (["ui=here", "format=csv"], "ui was 'here'. It must be the address of MLflow's UI"),
        (["format=pdf"], "format was 'pdf'. It must be one of text, markdown, csv, html, or null. Type format=text"),
        (["output=/proc/none/x", "format=csv"], "cannot be written"),
        (["model=effnetb4"], "model is not a setting. Similar settings are only.model, only.data."),
    ):
        refused = command("table", *arguments)
        assert refused.returncode == 1
        assert message in refused.stderr
