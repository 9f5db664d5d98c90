"""The command `ui`: MLflow's page of the recorded runs, in a browser too."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dogbreeds import ui
from dogbreeds.experiments.run import Run
from dogbreeds.tracking.saved_view import _COLUMNS

_CHROMIUM = shutil.which("chromium")
# As `make table` runs them.
_ATTEMPTS = ("torch_pixels", "lr_collapse", "frozen", "finetune_50", "finetune_20")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(environment: dict[str, str]) -> Iterator[str]:
    """Run the command until its page answers; yield what it has printed."""
    port = free_port()
    arguments = [sys.executable, "-m", "dogbreeds.ui", f"port={port}"]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            printed = "".join(iter(server.stdout.readline, "Ctrl-C ends the page.\n"))
            for _ in range(600):
                with contextlib.suppress(urllib.error.URLError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                time.sleep(0.1)
            yield printed
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def test_port_in_use_is_refused_with_another(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("ui", f"port={port}")
    assert done.returncode == 1
    assert f"port={port} cannot be used" in done.stderr
    assert re.search(r"Type port=\d+, or make ui PORT=\d+", done.stderr)


def test_server_of_a_local_store_has_one_worker_and_answers_this_machine_only(
    composed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, variables: started.append((command, variables)))
    tracking = composed().tracking
    ui._become_server(tracking, 5123)
    ((command, variables),) = started
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert (options["--host"], options["--port"], options["--workers"]) == ("127.0.0.1", "5123", "1")
    assert options["--backend-store-uri"] == tracking.uri
    assert variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


@pytest.mark.slow
def test_page_answers_under_the_name_that_its_link_has_and_ends_with_ctrl_c(
    tmp_path: Path, make_home: Callable[[Path], Path], command_environment: Callable[..., dict[str, str]]
) -> None:
    make_home(tmp_path / "home")
    with served(command_environment()) as printed:
        link = re.search(
            r"http://(dogbreeds\.localhost:(\d+))/#/experiments/1/runs\?viewStateShareKey=dogbreeds&", printed
        )
        assert link is not None
        name, port = link.groups()
        for host, allowed in ((name, True), (f"elsewhere:{port}", False)):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/runs/search",
                b'{"experiment_ids": ["1"]}',
                {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"},
            )
            with contextlib.nullcontext() if allowed else pytest.raises(urllib.error.HTTPError, match="403"):
                assert urllib.request.urlopen(request).status == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health")


@pytest.mark.long
@pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_browser_shows_five_attempts_with_verdicts_and_their_curves_after_one_click(
    tmp_path: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
    command_environment: Callable[..., dict[str, str]],
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    done = command("train", "--multirun", f"attempt={','.join(_ATTEMPTS)}", "phase.epochs=2")
    assert done.returncode == 0, done.stderr
    pictures = Path(os.environ.get("DOGBREEDS_PICTURES", tmp_path))
    with served(command_environment()) as printed, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(re.findall(r"runs +(http\S+)", printed)[0])
        rows = page.locator(".ag-center-cols-container .ag-row")
        playwright.expect(rows).to_have_count(len(_ATTEMPTS), timeout=60_000)
        columns = list(_COLUMNS)
        verdicts, accuracies = (page.locator(f".ag-row [col-id='{name}']") for name in columns[:2])
        playwright.expect(accuracies.first).to_have_text(re.compile(r"0\.[89]\d+"))
        assert {"never_learned", "learned"} < set(verdicts.all_inner_texts())
        positions = []
        for name in columns:
            heading = page.locator(f".ag-header-cell[col-id='{name}']")
            playwright.expect(heading).to_be_in_viewport(ratio=1)
            positions.append(heading.bounding_box()["x"])
        assert positions == sorted(positions)
        # The pages of model training; without an assistant, whose panel and button have this mark.
        playwright.expect(page.get_by_role("link", name="Models")).to_be_visible()
        assert page.locator("[data-assistant-ui]").count() == 0
        page.screenshot(path=pictures / "mlflow-runs.png")
        page.locator("label:has(input[value=CHART])").click()
        plots = page.locator(".js-plotly-plot")
        page.wait_for_selector(".js-plotly-plot .scatterlayer path.js-line", timeout=60_000)
        # MLflow draws each curve twice: as it is, and smoothed, which this view does not do.
        curves = plots.first.locator("path.js-line").evaluate_all("lines => lines.map(line => line.getAttribute('d'))")
        assert (len(curves), len(set(curves))) == (2 * len(_ATTEMPTS), len(_ATTEMPTS))
        for number in (1, 2):
            playwright.expect(plots.nth(number).locator(".scatterlayer path.point")).to_have_count(len(_ATTEMPTS))
        page.screenshot(path=pictures / "mlflow-charts.png")
        # A run's page, by the link that its command printed.
        link = re.findall(r"open +http://[^/]*(/#/experiments/\d+/runs/\w+\S*)", done.stdout)[0]
        page.goto(re.findall(r"(http://[^/]*)/", printed)[0] + link)
        playwright.expect(page.get_by_text("Description", exact=True)).to_be_visible(timeout=60_000)
        playwright.expect(page.get_by_role("link", name="Models")).to_be_visible()
        browser.close()
