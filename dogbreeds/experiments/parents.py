"""Parents: the frozen attempt that a fine-tune starts from, and what both must share."""

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import AUTO
from dogbreeds.experiments.run import Run
from dogbreeds.models.network import Network
from dogbreeds.tracking.records import SOURCE_SUFFIX, Parent, is_path
from dogbreeds.tracking.saved_run import SavedRun
from dogbreeds.training.phase import Finetune


def check_saved_parent(run: Run) -> None:
    """Check that the folder that a fine-tune names as its parent is there, if it names one.

    Raises:
        MissingFileError, UserError: it is not, or no run was saved in it.
    """
    if isinstance(run.phase, Finetune) and run.phase.parent is not None and is_path(run.phase.parent):
        SavedRun.read(run.phase.parent)


def load_parent(run: Run, parent_id: str | None, facts: dict[str, str], network: Network) -> Parent:
    """Find the frozen attempt that a fine-tune starts from, and load its weights into the head.

    Args:
        run: settings of the fine-tune.
        parent_id: as of `phase.Finetune`.
        facts: fingerprints of backbone and data, by parameter name.
        network: of the fine-tune.

    Raises:
        MissingFileError, UserError: if there is none, or it has another head.
    """
    must_match = parent_must_match(run, facts)
    with tempfile.TemporaryDirectory() as folder:
        if parent_id is not None and is_path(parent_id):
            parent = SavedRun.read(parent_id).parent(must_match)
        else:
            parent = run.tracking.find_parent(parent_id, must_match, run.seed, Path(folder))
        network.head.load_weights(parent.head)
    return parent


def parent_params(run: Run, facts: Mapping[str, str]) -> dict[str, str] | None:
    """Return the parameters of the run that a fine-tune starts from, before its weights are needed.

    Args:
        run: settings of the fine-tune, or of a run of another phase, which has no parent.
        facts: as for `parent_must_match`.

    Returns:
        Parameters by name; None without a parent. That a fine-tune has none is an error where its weights are loaded.
    """
    if not isinstance(run.phase, Finetune):
        return None
    parent = run.phase.parent
    with contextlib.suppress(UserError, MissingFileError):
        if parent is not None and is_path(parent):
            return SavedRun.read(parent).params
        return run.tracking.parent_params(parent, parent_must_match(run, facts), run.seed)
    return None


def parent_must_match(run: Run, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters that a fine-tune and its parent must share. What is `auto` may be the parent's.

    Args:
        run: settings of the fine-tune.
        facts: fingerprints of backbone and data, by parameter name, as far as they are known.
    """
    parameters = run.parameters()
    head = {name: value for name, value in parameters.items() if name.split(".")[0] == "head"}
    pixels = {name: value for name, value in parameters.items() if name.startswith("preprocessing.")} | {
        "data.resize": run.data.resize,
        "data.decoder": run.data.decoder,
        "model.image_size": run.model.image_size,
        "features.layers": run.features.layers,
    }
    # None for a class of the package, whose runs have no such parameter.
    names = [f"{group}{SOURCE_SUFFIX}" for group in ("data", "preprocessing", "head")]
    shared = {**facts, **head, **pixels, **{name: parameters.get(name) for name in names}}
    return {name: value for name, value in shared.items() if value != AUTO}
