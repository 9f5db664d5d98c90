"""Writes a network in other formats, and checks each against the original."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core import files, signals
from dogbreeds.core.console import progress
from dogbreeds.core.errors import UserError
from dogbreeds.data.image import Photo
from dogbreeds.inference import export_formats
from dogbreeds.inference.agreement import ParityCheck, compare
from dogbreeds.inference.export_formats import FORMATS

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A format that was written and checked."""

    name: str
    # Bytes
    size: int
    agreement: ParityCheck

    @property
    def agrees(self) -> bool:
        return self.agreement.within(FORMATS[self.name].allowed)


# --- formats ----------------------------------------------------------------------------------------------------------------


def _export(names: Sequence[str], classifier: "Classifier", photos: Sequence[Photo], folder: Path) -> list[Exported]:
    """Writes each format and asks it; what does not agree with the trained network is removed again."""
    asks = {}
    for name in names:
        started = time.perf_counter()
        # The converters' native code must not be cut in two
        with signals.deferred():
            asks[name] = export_formats.opened(name, export_formats.write(name, classifier, folder))
        log.info("%s: written in %.1f s", name, time.perf_counter() - started)
    with progress("checking", len(photos), "photos") as advance:
        agreements = compare(asks, export_formats.ask_keras(classifier.whole), (photo() for photo in photos), advance)
    found = [Exported(name, _size(folder / FORMATS[name].file), agreement) for name, agreement in agreements.items()]
    for each in found:
        if not each.agrees:
            files.remove(folder / FORMATS[each.name].file)
    return found


def _size(place: Path) -> int:
    return (
        sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        if place.is_dir()
        else place.stat().st_size
    )


def _check_all_agree(found: Sequence[Exported]) -> None:
    wrong = [each for each in found if not each.agrees]
    if wrong:
        name, agreement = wrong[0].name, wrong[0].agreement
        more = f", nor {' or '.join(each.name for each in wrong[1:])}" if wrong[1:] else ""
        raise UserError(
            f"{name} is not the network that was trained{more}: a probability differs by {agreement.difference:.2g}."
            f" {FORMATS[name].allowed:g} is allowed, so that its file was removed and nothing was registered. Type"
            " formats=[…] with those that agree."
        )
