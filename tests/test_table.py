"""The table, from records as MLflow gives them."""

import csv
import io
import re
from dataclasses import replace

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.recorded_runs import Only
from dogbreeds.reports.attempts_rendering import as_csv, as_html, as_markdown, as_text
from dogbreeds.reports.attempts_table import not_run, tables
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record

CURVES = {
    "torch_pixels": [0.008, 0.006],
    "lr_collapse": [0.354, 0.22, 0.05],
    "frozen": [0.787, 0.919, 0.912],
    "finetune_50": [0.92, 0.927],
}
VERDICTS = {
    "torch_pixels": "never_learned",
    "lr_collapse": "collapsed",
    "frozen": "learned",
    "finetune_50": "better_than_frozen",
}


def record(attempt: str, seed: int = 0, started: float = 0, model: str = "Miniature", **changes: str) -> Record:
    finetune = attempt.startswith("finetune")
    params = {
        "model.architecture": model,
        "data.name": "miniature",
        "data.photos.val": "1200",
        "data.photos.train": "2400",
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
        {"best/val_accuracy": max(CURVES[attempt]) + seed / 1000},
        tags,
        "7",
    )


def address(of: Record) -> str:
    return f"http://mlflow/#/experiments/{of.experiment_id}/runs/{of.run_id}"


def history(run_id: str) -> list[float]:
    return CURVES[run_id.split("-")[0]]


@pytest.fixture
def table():
    (found,) = tables([record(name) for name in reversed(CURVES)], history)
    return found


def test_the_guide_s_attempts_stand_in_its_order_with_what_was_measured(table) -> None:
    headings, *lines = table.lines()
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
            "never learned",
            "1–5 %",
            "reproduced",
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
            "collapsed",
            "43 → 14 %",
            "reproduced",
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
            "learned",
            "93.7 %",
            "reproduced",
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
            "better than frozen",
            "92.9 %",
            "refuted",
        ],
        ["finetune_20", *["–"] * 9, "to be tested", "not tested here"],
    ]
    assert (
        "finetune_50: the verdict is refuted: no better than frozen or worse than frozen in 0 of 1, otherwise better"
        " than frozen." in table.notes()
    )
    assert any(
        note.endswith("Type python -m dogbreeds.train attempt=finetune_20 model=miniature data=miniature.")
        for note in table.notes()
    )
    assert any(note.startswith("The guide's numbers are not tested here") for note in table.notes())


def test_seeds_of_an_attempt_share_a_line_and_older_runs_are_left_out() -> None:
    old, newest = record("frozen", 0, started=1), record("frozen", 0, started=2)
    (table,) = tables([record("frozen", 2, started=3), newest, record("frozen", 1, started=1.5), old], history)
    row = table.rows[2]
    assert [one.run_id for one in row.records] == ["frozen-2-3", "frozen-0-2", "frozen-1-1.5"]
    assert row.cells()["result"] == "92.0 % (91.9–92.1, 3 seeds)"
    assert row.cells()["verdict"] == "learned"
    assert row.claim.why == "learned in 3 of 3 seeds"
    (each,) = tables([newest, old], history, each=True)
    assert [row.attempt for row in each.rows if row.records] == ["frozen", "frozen"]


def test_runs_that_were_set_up_differently_are_not_averaged() -> None:
    other = record("frozen", 1)
    other.params["phase.epochs"] = "3"
    (table,) = tables([record("frozen", 0), other], history)
    assert [one.run_id for one in table.rows[2].records] == ["frozen-0-0"]


def test_a_changed_attempt_tests_no_claim() -> None:
    (table,) = tables([record("frozen", **{"attempt.changed": "optimizer.lr=0.1"})], history)
    assert table.rows[2].claim.status == "not tested here"
    assert "frozen: the verdict is not tested here: it was run with optimizer.lr=0.1." in table.notes()[2]


def test_an_attempt_that_was_changed_later_does_not_hide_it() -> None:
    (table,) = tables(
        [record("frozen", started=2, **{"attempt.changed": "head=Linear"}), record("frozen", started=1)], history
    )
    assert [one.run_id for one in table.rows[2].records] == ["frozen-0-1"]


def test_other_photos_stand_in_another_table() -> None:
    few = record("frozen")
    few.params["data.classes"] = "5"
    assert len(tables([record("frozen"), few], history)) == 2


def test_a_run_that_finished_no_epoch_has_no_accuracy() -> None:
    diverged = record("frozen")
    diverged.metrics.clear()
    diverged.tags["verdict"] = "diverged"
    (table,) = tables([diverged], lambda run_id: [])
    cells = table.rows[2].cells()
    assert (cells["result"], cells["interval"], cells["verdict"], cells["claim"]) == ("–", "–", "diverged", "refuted")
    assert table.histories() == {}


def test_every_run_s_curve_is_drawn() -> None:
    (table,) = tables([record("frozen", started=2), record("frozen", started=1)], history, each=True)
    assert len(table.histories()["frozen"]) == 2


def test_claims_that_stand_in_no_table_are_named_once(table) -> None:
    said = (
        "Not tested here: resnet50_frozen, resnet50_finetune_50: not run. Type python -m dogbreeds.train --multirun"
        " attempt="
    )
    assert not_run([table]) == f"{said}resnet50_frozen,resnet50_finetune_50."
    assert as_html([table, table], address).count("Not tested here: resnet50_frozen") == 1


def test_models_have_tables_of_their_own_and_filters() -> None:
    records = [record("frozen"), record("frozen", model="EfficientNetB0")]
    assert [table.title for table in tables(records, history)] == [
        f"{name} on data miniature, 120 classes, 2,400 photos to train on" for name in ("Miniature", "EfficientNetB0")
    ]
    assert [
        Only(model=name, data=None).holds(records[1]) for name in ("effnetb0", "efficientnetb0", "EfficientNetB0")
    ] == [False, True, True]
    assert Only(model="miniature", data="miniature").holds(records[0])
    assert not Only(model=None, data="stanford_dogs").holds(records[0])


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_text_keeps_to_the_terminal_s_width(table, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = as_text(table, width, address)
    text = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", shown)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    assert ("layers" in text) == (width >= 150)
    # No name is broken
    assert all(re.search(rf"^ {name} ", text, re.MULTILINE) for name in CURVES)
    # The first digits of the id lead to the run
    assert (f"{address(table.rows[1].records[0])}\x1b\\lr_colla\x1b" in shown) == (width >= 80)


def test_each_seed_s_run_is_linked() -> None:
    (table,) = tables([record("frozen", 1, started=2), record("frozen", 0, started=1)], history)
    markdown = as_markdown(table, address)
    assert (
        "| [frozen-1](http://mlflow/#/experiments/7/runs/frozen-1-2),"
        " [frozen-0](http://mlflow/#/experiments/7/runs/frozen-0-1) |" in markdown
    )
    rows = list(csv.DictReader(io.StringIO(as_csv([table], address))))
    assert (
        rows[2]["links"]
        == "http://mlflow/#/experiments/7/runs/frozen-1-2 http://mlflow/#/experiments/7/runs/frozen-0-1"
    )
    page = as_html([table], address)
    assert [re.findall(r'<td class=run><a href="(.*?)">(.*?)</a><br><a href="(.*?)">(.*?)</a></td>', page)] == [
        [(rows[2]["links"].split()[0], "frozen-1", rows[2]["links"].split()[1], "frozen-0")]
    ]
    lines = as_text(table, None, address).splitlines()
    assert [line.split()[-1] for line in lines if "frozen-" in line] == ["frozen-1", "frozen-0"]


def test_a_run_that_is_named_by_what_was_typed_leaves_room_for_the_rest() -> None:
    named = replace(record("frozen"), name="effnetb0 frozen data.root=/somewhere/else/photos optimizer.lr=0.001")
    named.tags.pop("choice.attempt")
    (table,) = tables([named], history, each=True)
    names = [line[1:15].strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", as_text(table, 80, address)).splitlines()]
    start = names.index("effnetb0")
    # The picture's legend
    assert "effnetb0 frozen … e/else/photos optimizer.lr=0.001: best 91.9 %" in as_html([table], address)
    assert names[start : start + 6] == ["effnetb0", "frozen", "data.root=…/p", "hotos", "optimizer.lr=", "0.001"]


@pytest.mark.parametrize(
    ("uri", "ui", "begins"),
    [
        ("sqlite:///mlflow.db", "http://127.0.0.1:5000", "http://127.0.0.1:5000/#/experiments/7/runs/frozen-0-0"),
        (
            "sqlite:///mlflow.db",
            "https://lab.example/mlflow/",
            "https://lab.example/mlflow/#/experiments/7/runs/frozen-0-0",
        ),
        (
            "https://me:secret@lab.example:8443",
            "http://127.0.0.1:5000",
            "https://lab.example:8443/#/experiments/7/runs/frozen-0-0",
        ),
    ],
)
def test_a_run_s_page_is_on_the_server_that_records_it_or_where_the_store_is_shown(
    uri: str, ui: str, begins: str
) -> None:
    tracking = Mlflow(
        uri=uri, artifacts="a", experiment="e", model="best", system_metrics_seconds=0, patience_minutes=0
    )
    assert tracking.page(record("frozen"), ui) == begins
    with pytest.raises(
        UserError,
        match=re.escape(
            "ui was 'javascript:x'. It must be the address where MLflow shows runs, with http:// or https://. Type ui="
        ),
    ):
        replace(tracking, uri="sqlite:///mlflow.db").page(record("frozen"), "javascript:x")


def test_markdown_csv_and_html_say_the_same(table) -> None:
    markdown = as_markdown(table, address)
    assert (
        "| lr_collapse | frozen | raw | 0.01 | 0 (frozen) | – | 35.4 → 5.0 % | 1,200 | 32.8–38.2 | collapsed | 43 → 14"
        " % | reproduced | [lr_colla](" in markdown
    )
    rows = list(csv.DictReader(io.StringIO(as_csv([table], address))))
    assert [row["attempt"] for row in rows] == ["torch_pixels", "lr_collapse", "frozen", "finetune_50", "finetune_20"]
    assert rows[1]["result"] == "35.4 → 5.0 %"
    assert rows[1]["runs"] == "lr_collapse-0-0"
    page = as_html([table], address)
    assert page.count("<svg") == 1
    assert "35.4 → 5.0&nbsp;%" in page
    assert "src=" not in page
    assert set(re.findall(r'href="(http[^"]*)"', page)) == {
        address(row.records[0]) for row in table.rows if row.records
    }
    assert "finetune_50: best 92.7 %" in page


@pytest.mark.slow
def test_the_command_reads_what_was_recorded(command, tmp_path) -> None:
    nothing = command("table")
    assert nothing.returncode == 1
    assert "has no finished attempt. The table needs one at least. Type make table" in nothing.stderr
    ran = command(
        "train", "--multirun", "attempt=lr_collapse,frozen", "phase.epochs=4", "tracking.system_metrics_seconds=0"
    )
    assert ran.returncode == 0, ran.stderr
    shown = command("table", "format=csv")
    rows = {row["attempt"]: row for row in csv.DictReader(io.StringIO(shown.stdout))}
    assert (rows["lr_collapse"]["verdict"], rows["lr_collapse"]["claim"]) == ("collapsed", "reproduced")
    assert (rows["frozen"]["verdict"], rows["frozen"]["claim"]) == ("learned", "reproduced")
    assert rows["finetune_20"]["claim"] == "not tested here"
    assert rows["frozen"]["links"] == f"http://127.0.0.1:5000/#/experiments/1/runs/{rows['frozen']['runs']}"
    page = command("table", "format=html", f"output={tmp_path}/out/page.html")
    assert page.stdout.strip() == f"{tmp_path}/out/page.html"
    assert "reproduced" in (tmp_path / "out/page.html").read_text()
    for arguments, said in (
        (["only.model=effnetb4"], "has no finished attempt with only.model=effnetb4."),
        (["ui=here", "format=csv"], "ui was 'here'. It must be the address where MLflow shows runs"),
        (["format=pdf"], "format was 'pdf'. It must be one of text, markdown, csv, html. Type format=text"),
        (["output=/proc/none/x", "format=csv"], "cannot be written"),
        (["model=effnetb4"], "model is not a setting. Near it there are only.model, only.data."),
    ):
        refused = command("table", *arguments)
        assert refused.returncode == 1
        assert said in refused.stderr
