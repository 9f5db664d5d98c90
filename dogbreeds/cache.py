"""The command `python -m dogbreeds.cache`: lists kept photos and features, and removes them with `clear=true`."""

import time

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.experiments.compose import part
from dogbreeds.features.cache import Listed

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (0, "s"))


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="cache")
@cli.alone
def task(config: DictConfig) -> None:
    """Prints what is kept and where, the most recently used first, or clears it."""
    clear = config["clear"]
    if not isinstance(clear, bool):
        raise UserError(
            f"clear was {clear!r}. It must be true or false. Type clear=true to remove what is kept, or nothing to"
            " list it."
        )
    store = part(config, "features").store()
    if clear:
        gone, stayed = store.clear()
        print(f"{gone} kept arrays removed from {store.root}{f'; {stayed} are in use' if stayed else ''}")
        return
    entries = store.entries()
    for listed in entries:
        print(
            f"{listed.name:38} {listed.size / 1e6:10,.1f} MB   used {_ago(time.time() - listed.used):>7} ago  "
            f" {_about(listed)}"
        )
    total, unfinished = sum(listed.size for listed in entries), sum(listed.unfinished is not None for listed in entries)
    some = f" ({unfinished} unfinished)" if unfinished else ""
    print(
        f"{len(entries)} kept arrays{some}, {total / 1e9:.2f} of at most {store.max_bytes / 1e9:g} GB, in {store.root}"
    )


def _about(listed: Listed) -> str:
    identity = listed.identity
    if not identity:
        return "damaged"
    said = [f"{identity['size']} px", identity["resize"], *([identity["dtype"]] if "dtype" in identity else [])]
    if "shard" in identity:
        said.append("shard {first:,}–{end:,} of {total:,} rows".format(**identity["shard"]))
    if listed.unfinished is not None:
        said.append("unfinished: {:,} of {:,} rows".format(*listed.unfinished))
    return ", ".join(said)


def _ago(seconds: float) -> str:
    # What another machine wrote may be from its future
    seconds = max(seconds, 0.0)
    span, unit = next((span, unit) for span, unit in _UNITS if seconds >= span)
    return f"{seconds / (span or 1):.0f} {unit}"


if __name__ == "__main__":
    cli.main(task, "cache")
