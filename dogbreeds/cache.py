"""Command `python -m dogbreeds.cache`: list what keeps disk space, or clear some of it."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dogbreeds import cli
from dogbreeds.core import console
from dogbreeds.core.errors import UserError
from dogbreeds.core.former_names import IMPLIED_PARAMS
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import Spec, boolean, number, text
from dogbreeds.core.text import size_text
from dogbreeds.experiments import disk_space
from dogbreeds.experiments.compose import build_spec
from dogbreeds.experiments.disk_space import CACHED_KINDS, CHECKPOINT_KINDS, KINDS, RUN_KINDS, Item
from dogbreeds.features.array_info import ArrayInfo
from dogbreeds.features.cache import FeatureCache
from dogbreeds.reports import tables
from dogbreeds.reports.tables import Column
from dogbreeds.tracking import disk_use
from dogbreeds.tracking.disk_use import RunOnDisk
from dogbreeds.tracking.mlflow_backend import Mlflow

_COLUMNS = (Column(), Column(numeric=True), Column(numeric=True), Column(min_width=12))
# Seconds of each unit, the largest first.
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (0, "s"))
_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of the command.

    Attributes:
        checkpoint_dir: folder of the checkpoints.
        confirm: whether `clear` removes what it lists.
        older_than_days: only what has not been used for so long is cleared.
    """

    group = ""
    checkpoint_dir: str = text(example="multirun/checkpoints")
    confirm: bool = boolean()
    older_than_days: float = number(at_least=0, example=30)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="cache")
@cli.standalone
def task(config: DictConfig) -> None:
    """List what keeps disk space, or clear it."""
    clear: Any = OmegaConf.to_container(config, resolve=True)["clear"]  # type: ignore[index, call-overload]
    settings = Settings(**{name: config[name] for name in ("checkpoint_dir", "confirm", "older_than_days")})
    cache = build_spec(config, "features").open_cache()
    if clear is True:
        _clear_cache(cache)
        return
    kinds = _kinds(clear)
    if not kinds:
        # First, because the store may be damaged.
        _list(cache)
    tracking = build_spec(config, "tracking")
    folder = Path(settings.checkpoint_dir).expanduser()
    store = disk_use.database(tracking) if isinstance(tracking, Mlflow) else None
    runs = disk_use.runs_on_disk(tracking) if store is not None else []
    items = [*disk_space.cached_items(cache), *disk_space.checkpoint_items(folder, runs)]
    if store is not None:
        items += disk_space.run_items(tracking, runs)
    if kinds:
        unused_since = time.time() - _DAY * settings.older_than_days
        chosen = [item for item in items if item.kind in kinds and item.last_used <= unused_since]
        _clear(chosen, tracking, settings.confirm)
        return
    _list_checkpoints(folder, [item for item in items if item.kind in CHECKPOINT_KINDS])
    if store is not None:
        _list_runs(store, tracking, runs)
    _list_kinds(items)


def _kinds(clear: Any) -> tuple[str, ...]:
    """Return the kinds to clear; none if the command is to list all."""
    if clear in (None, False):
        return ()
    kinds = clear if isinstance(clear, list) else [clear]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(
            f"clear was {clear!r}. It must be true, for all cached arrays that are not in use, or some of"
            f" {', '.join(KINDS)}. Type clear=true or 'clear=[leftover,diverged]', or leave clear out to list them."
        )
    return tuple(kinds)


# --- clear ------------------------------------------------------------


def _clear_cache(cache: FeatureCache) -> None:
    removed, remaining = cache.clear()
    print(f"{removed} cached arrays removed from {cache.root}{f'; {remaining} are in use' if remaining else ''}")


def _clear(items: Sequence[Item], tracking: Mlflow, confirm: bool) -> None:
    """Remove items if that is confirmed; list them otherwise."""
    if not confirm:
        size = sum(item.size_bytes for item in items)
        hint = " Nothing was removed: add confirm=true to remove them." if items else ""
        _print_table([_row(item) for item in items], f"{len(items)} items, {size_text(size)}.{hint}")
        return
    removed = [item for item in items if item.remove()]
    if any(item.kind == "deleted_runs" for item in removed):
        disk_use.compact(tracking)
    in_use = f"; {len(items) - len(removed)} are in use" if len(removed) < len(items) else ""
    print(f"{len(removed)} items removed, {size_text(sum(item.size_bytes for item in removed))}{in_use}")


# --- list -------------------------------------------------------------


def _list(cache: FeatureCache) -> None:
    entries = cache.entries()
    rows = [
        (
            info.name,
            size_text(info.size_bytes),
            f"used {_age(time.time() - info.last_used)} ago",
            _description(info),
        )
        for info in entries
    ]
    total_bytes = sum(info.size_bytes for info in entries)
    unfinished = sum(info.unfinished is not None for info in entries)
    summary = (
        f"{len(entries)} cached arrays{f' ({unfinished} unfinished)' if unfinished else ''},"
        f" {size_text(total_bytes)} of at most {size_text(cache.max_bytes)}, in {cache.root}"
    )
    _print_table(rows, summary)


def _list_checkpoints(folder: Path, items: Sequence[Item]) -> None:
    if items:
        size = sum(item.size_bytes for item in items)
        print()
        _print_table([_row(item) for item in items], f"{len(items)} checkpoints, {size_text(size)}, in {folder}")


def _list_runs(store: Path, tracking: Mlflow, runs: Sequence[RunOnDisk]) -> None:
    present = [run for run in runs if not run.deleted]
    deleted = [run for run in runs if run.deleted]
    networks = [run for run in present if run.network_bytes]
    all_artifacts = disk_use.folder_size(Path(tracking.artifacts).expanduser())
    of_runs = sum(run.network_bytes + run.other_bytes for run in runs)
    rows = [
        ("database", size_text(store.stat().st_size), "", store.name),
        ("saved networks", size_text(sum(run.network_bytes for run in networks)), "", f"of {len(networks)} runs"),
        ("other artifacts", size_text(sum(run.other_bytes for run in present)), "", f"of {len(present)} runs"),
        (
            "deleted runs",
            size_text(sum(run.network_bytes + run.other_bytes for run in deleted)),
            "",
            f"{len(deleted)}",
        ),
        ("served models", size_text(max(0, all_artifacts - of_runs)), "", "from export"),
    ]
    total = store.stat().st_size + max(all_artifacts, of_runs)
    print()
    _print_table(rows, f"{len(runs)} recorded runs, {size_text(total)}, in {store.parent}")


def _list_kinds(items: Sequence[Item]) -> None:
    """Print what can be cleared; nothing if there is nothing but the cache, which `clear=true` empties."""
    kinds = [kind for kind in (*CHECKPOINT_KINDS, *RUN_KINDS) if any(item.kind == kind for item in items)]
    if not kinds:
        return
    rows = []
    for kind in (*CACHED_KINDS, *kinds):
        sizes = [item.size_bytes for item in items if item.kind == kind]
        rows.append((f"clear={kind}", size_text(sum(sizes)), f"{len(sizes)}", KINDS[kind]))
    print()
    _print_table(rows, "clear=<kind> lists what it would remove, and removes it with confirm=true.")


def _print_table(rows: Sequence[tuple[str, str, str, str]], summary: str) -> None:
    width = console.terminal_width(sys.stdout)
    listing = tables.text_table(_COLUMNS, rows, width, gap=3) if rows else ""
    print(listing + tables.paragraph(summary, width), end="")


def _row(item: Item) -> tuple[str, str, str, str]:
    description = f"{item.kind}: {item.description}" if item.description else item.kind
    return item.name, size_text(item.size_bytes), f"used {_age(time.time() - item.last_used)} ago", description


def _description(info: ArrayInfo) -> str:
    identity = info.identity
    if not identity:
        return "damaged"
    # Versions of the project may share a cache.
    if not identity.keys() >= {"size", "resize"}:
        return "of another version"
    parts = [f"{identity['size']} px", identity["resize"]]
    if "dtype" in identity:
        parts.append(identity["dtype"])
    # What TensorFlow computed in float32 has neither.
    parts += [f"by {identity['runtime']}"] if "runtime" in identity else []
    parts += [f"in {identity['precision']}"] if "precision" in identity else []
    if "shard" in identity:
        parts.append("shard {first:,}–{end:,} of {total:,} rows".format(**identity["shard"]))
    parts.append(identity.get("decoder", IMPLIED_PARAMS["data.decoder"]))
    if info.unfinished is not None:
        parts.append("unfinished: {:,} of {:,} rows".format(*info.unfinished))
    return ", ".join(parts)


def _age(seconds: float) -> str:
    """Format a time span in its largest unit."""
    # Another machine's clock may be ahead.
    seconds = max(seconds, 0.0)
    span, unit = next((span, unit) for span, unit in _UNITS if seconds >= span)
    return f"{seconds / (span or 1):.0f} {unit}"


if __name__ == "__main__":
    cli.main(task, "cache")
