"""Executes the notebooks in `examples/` from top to bottom, and saves their outputs in them.

Run: make notebooks, or python docs/execute_notebooks.py examples/first-run.ipynb for some of them.

They run in a temporary folder, and share a new feature cache in it. A notebook that fails stays as it was.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.files import atomic_write

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples"
# In the order of the tutorials. The first one computes the features that the second one finds cached.
NOTEBOOKS = [FOLDER / f"{name}.ipynb" for name in ("first-run", "diagnose-a-collapse", "your-own-images")]
_SECONDS_PER_CELL = 600
_INSTALL = "Type make setup EXTRAS=notebook."


def read(path: Path) -> "NotebookNode":
    """Read a notebook whose kernel is installed.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if the packages of the extra `notebook`, or the notebook's kernel, are not installed.
    """
    try:
        import nbformat
        from jupyter_client.kernelspec import KernelSpecManager
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed. Notebooks need nbclient and ipykernel. {_INSTALL}") from error
    if not path.is_file():
        names = ", ".join(known.name for known in NOTEBOOKS)
        raise MissingFileError(f"{path} is not a file. The notebooks are {names}. Type make notebooks for all of them.")
    notebook = nbformat.read(path, as_version=4)
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    installed = sorted(KernelSpecManager().find_kernel_specs())
    if kernel not in installed:
        needed = f"needs the kernel {kernel}, which is not installed" if kernel else "names no kernel"
        raise UserError(f"{path} {needed}. Installed are: {', '.join(installed) or 'none'}. {_INSTALL}")
    return notebook


def execute(notebook: "NotebookNode", folder: Path, cache: Path) -> None:
    """Execute the cells of a notebook in a new kernel, and replace their outputs.

    Args:
        notebook: from `read`.
        folder: current folder of the kernel, where its runs are recorded.
        cache: feature cache.

    Raises:
        CellExecutionError: if a cell fails.
    """
    from nbclient import NotebookClient
    from traitlets.config import Config

    environment = {
        "DOGBREEDS_HOME": str(folder),
        "DOGBREEDS_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
        # The history of inputs.
        "IPYTHONDIR": str(folder / ".ipython"),
    }
    client = NotebookClient(
        notebook,
        # Sockets in the folder. On ports, which other users of the machine can read, the kernel warns.
        config=Config(KernelManager={"transport": "ipc", "ip": str(folder / ".kernel")}),
        timeout=_SECONDS_PER_CELL,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=os.environ | environment)
    # The version of Python would differ on another machine.
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # The bar of an epoch is hidden at its end, and leaves an empty output.
            cell.outputs = [output for output in cell.outputs if output.get("data", {}).get("text/plain") != ""]


def main() -> None:
    import nbformat

    paths = [Path(name) for name in sys.argv[1:]] or NOTEBOOKS
    notebooks = {path: read(path) for path in paths}
    with tempfile.TemporaryDirectory(prefix="notebooks-") as place:
        for path, notebook in notebooks.items():
            started = time.monotonic()
            folder = Path(place) / path.stem
            folder.mkdir()
            execute(notebook, folder, Path(place) / "cache")
            with atomic_write(path) as file:
                nbformat.write(notebook, file)
            print(f"{path.name}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    try:
        main()
    except (UserError, MissingFileError) as error:
        sys.exit(f"error: {error}")
