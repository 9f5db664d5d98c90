"""Command `python -m dogbreeds.cache`: list the feature cache, or empty it with `clear=true`."""

import sys
import time

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import console
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder
from dogbreeds.core.text import size_text
from dogbreeds.experiments.compose import build_spec
from dogbreeds.features.array_info import ArrayInfo
from dogbreeds.features.cache import FeatureCache
from dogbreeds.reports import tables
from dogbreeds.reports.tables import Column

_COLUMNS = (Column(), Column(numeric=True), Column(numeric=True), Column(min_width=12))
# Seconds of each unit, the largest first.
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (0, "s"))


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="cache")
@cli.standalone
def task(config: DictConfig) -> None:
    """List the cached arrays, the most recently used first, or remove them."""
    clear = config["clear"]
    if not isinstance(clear, bool):
        raise UserError(
            f"clear was {clear!r}. It must be true or false. Type clear=true to remove all cached arrays that are not"
            " in use, or leave clear out to list them."
        )
    cache = build_spec(config, "features").open_cache()
    if clear:
        _clear(cache)
    else:
        _list(cache)


def _clear(cache: FeatureCache) -> None:
    removed, remaining = cache.clear()
    print(f"{removed} cached arrays removed from {cache.root}{f'; {remaining} are in use' if remaining else ''}")


def _list(cache: FeatureCache) -> None:
    width = console.terminal_width(sys.stdout)
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
    listing = tables.text_table(_COLUMNS, rows, width, gap=3) if rows else ""
    print(listing + tables.paragraph(summary, width), end="")


def _description(info: ArrayInfo) -> str:
    identity = info.identity
    if not identity:
        return "damaged"
    parts = [f"{identity['size']} px", identity["resize"]]
    if "dtype" in identity:
        parts.append(identity["dtype"])
    if "shard" in identity:
        parts.append("shard {first:,}–{end:,} of {total:,} rows".format(**identity["shard"]))
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
