"""The notebooks in `examples/`: as they are committed, and executed again."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from docs import execute_notebooks
from dogbreeds.core.errors import MissingFileError, UserError

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbclient: make setup EXTRAS=notebook")
NOTEBOOKS = execute_notebooks.NOTEBOOKS
_MAX_BYTES = 300_000
_MACHINE_PATH = re.compile(r"(?<![\w.<])/(?:home|root|tmp|work|usr|opt|var|Users)/")


def code_cells(notebook: Any) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[str]:
    """Return what the outputs of a cell are, without progress bars, which depend on what is cached."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "<progress" not in data.get("text/html", ""):
            found.append(f"{output.output_type} {output.get('name', '')}{' '.join(sorted(data))}")
    return found


def texts(notebook: Any) -> str:
    """Return all outputs of a notebook that are text."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    parts = [output.get("text", "") for output in outputs]
    parts += [text for output in outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


def check_outputs(notebook: Any) -> None:
    """Check that a notebook was executed from top to bottom, and has neither warnings nor paths of the machine."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not {kind for cell in cells for kind in kinds(cell) if kind.startswith(("error", "stream stderr"))}
    assert not re.search("warning|traceback", texts(notebook), re.IGNORECASE)
    assert not _MACHINE_PATH.search(texts(notebook))


def test_every_notebook_is_executed_by_the_command() -> None:
    assert sorted(NOTEBOOKS) == sorted(execute_notebooks.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_its_outputs_and_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    check_outputs(notebook)
    assert path.stat().st_size < _MAX_BYTES
    pictures = [
        output for cell in code_cells(notebook) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
    assert (notebook.metadata.kernelspec.name, notebook.metadata.language_info) == ("python3", {"name": "python"})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_tutorial_of_the_same_name_link_to_each_other(path: Path) -> None:
    tutorial = execute_notebooks.ROOT / f"docs/pages/tutorials/{path.stem}.md"
    assert f"examples/{path.name}" in tutorial.read_text()
    source = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    linked = [path.parent / link for link in re.findall(r"\]\(([^)]+)\)", source)]
    assert tutorial in [link.resolve() for link in linked]
    assert [link for link in linked if not link.is_file()] == []


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_gives_the_same_kinds_of_outputs_when_it_is_executed_again(
    path: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests silence TensorFlow's native code by it. The package does that itself.
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    notebook = execute_notebooks.read(path)
    execute_notebooks.execute(notebook, tmp_path, cache)
    check_outputs(notebook)
    committed = nbformat.read(path, as_version=4)
    assert [kinds(cell) for cell in code_cells(notebook)] == [kinds(cell) for cell in code_cells(committed)]


@pytest.mark.slow
def test_notebook_that_fails_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fails.ipynb"
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell("print('begun')"), nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(notebook, path)
    before = path.read_bytes()
    monkeypatch.setattr("sys.argv", ["execute_notebooks.py", str(path)])
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute_notebooks.main()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["fails.ipynb"]


@pytest.mark.parametrize(
    ("metadata", "received"),
    [({"kernelspec": {"name": "julia-1.10", "display_name": "Julia"}}, "julia-1.10"), ({}, "no kernel")],
    ids=["not installed", "not named"],
)
def test_notebook_without_a_kernel_is_refused(tmp_path: Path, metadata: dict[str, Any], received: str) -> None:
    path = tmp_path / "first-run.ipynb"
    shutil.copy(NOTEBOOKS[0], path)
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = metadata
    nbformat.write(notebook, path)
    with pytest.raises(UserError) as error:
        execute_notebooks.read(path)
    assert received in str(error.value)
    assert "make setup EXTRAS=notebook" in str(error.value)


def test_notebook_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"first-run\.ipynb.*Type make notebooks"):
        execute_notebooks.read(tmp_path / "second-run.ipynb")


@pytest.mark.long
def test_interrupt_of_a_notebook_stops_the_fit_and_leaves_the_kernel_alive(tmp_path: Path, cache: Path) -> None:
    manager_module = pytest.importorskip("jupyter_client.manager")
    environment = os.environ | {"DOGBREEDS_HOME": str(tmp_path), "DOGBREEDS_CACHE": str(cache)}
    manager, client = manager_module.start_new_kernel(kernel_name="python3", env=environment, cwd=str(tmp_path))
    try:
        small = "'data.classes=4', 'data.train_per_class=8', 'data.val_per_class=4', 'data.test_per_class=4'"
        run = f"db.compose([{small}, 'phase.epochs=100000', 'phase.patience_epochs=null'])"
        client.execute(f"import dogbreeds as db\ndb.fit({run})")
        printed = ""
        while "epoch" not in printed:
            printed += client.get_iopub_msg(timeout=300)["content"].get("text", "")
        manager.interrupt_kernel()
        ended = client.get_shell_msg(timeout=120)["content"]
        assert (ended["status"], ended.get("ename")) == ("error", "KeyboardInterrupt")
        # The kernel goes on, and the checkpoint is there.
        assert client.execute_interactive("assert db.runs().empty", timeout=120)["content"]["status"] == "ok"
        assert len(list((tmp_path / "multirun/checkpoints").iterdir())) > 0
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
