"""What is measured of each way, and what follows from it: seconds of one run, of sweeps, and of fine-tunes."""

import itertools
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.speed import limit
from tests.bench.speed.photos import Setup, b0, b4, write_photos
from tests.bench.speed.ways import Seconds, Way, all_ways

RUNS, FINETUNES = (1, 4, 16, 64), (1, 4)


@dataclass(frozen=True)
class Plan:
    """What is measured on one backbone.

    Attributes:
        setup: backbone and photos.
        sweep: runs of a sweep on each number of photos, as many as `setup.each`.
        finetunes: fine-tunes on the fewest photos.
        costly_epochs: epochs that are measured of a way that passes all photos in each; the others are extrapolated.
        costly_counts: on how many of the numbers of photos such a way is measured.
        rounds: how often all is measured; the median counts.
        limit_seconds: how long each engine's own loop is measured.
    """

    setup: Setup
    sweep: tuple[int, ...]
    finetunes: int
    costly_epochs: int
    costly_counts: int = 1
    rounds: int = 1
    limit_seconds: float = 10.0


# 16 minutes on 2 cores without AVX-512.
QUICK = (
    Plan(b0(30, (4, 8, 16)), sweep=(4, 1, 1), finetunes=2, costly_epochs=2),
    Plan(b4(10, (4,)), sweep=(2,), finetunes=0, costly_epochs=2),
)
# Without extrapolated epochs.
FULL = (Plan(b0(120, (7, 40)), sweep=(16, 16), finetunes=4, costly_epochs=6, rounds=3, limit_seconds=30),)


@dataclass(frozen=True)
class Cost:
    """Seconds of several runs.

    Attributes:
        seconds: of all.
        is_measured: whether nothing is extrapolated.
    """

    seconds: float
    is_measured: bool


class Study:
    """Measures, and keeps what was measured.

    Args:
        plans: what is measured.
        measured: what an interrupted study has measured, as `measured` was; empty for none.
        save: called after each measurement.
        ways: ways to compare.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        measured: dict[str, Any] | None = None,
        save: Callable[[dict[str, Any]], None] = lambda measured: None,
        ways: Sequence[Way] | None = None,
    ):
        self.plans = plans
        # Lists of [seconds, is measured] of each run, by `_key`; and rates of engines by setup and engine.
        self.measured = measured or {}
        self.ways = list(ways or all_ways())
        self._save = save

    def run(self, words: Sequence[str] = ()) -> None:
        """Measure what is missing. The ways take turns in each round.

        Args:
            words: only ways whose names contain one of them are measured; none for all.
        """
        asked = [way for way in self.ways if not words or any(word in way.name for word in words)]
        for plan in self.plans:
            with tempfile.TemporaryDirectory() as folder:
                photos = {each: Path(folder) / f"{each}_each" for each in plan.setup.each}
                for each, root in photos.items():
                    write_photos(root, plan.setup.classes, each)
                self._measure_limit(plan, photos[plan.setup.each[0]], Path(folder))
                for number in range(plan.rounds):
                    for place, each in enumerate(plan.setup.each):
                        for way in asked:
                            if not way.missing:
                                self._measure(plan, way, place, photos[each], number, Path(folder))

    def _measure_limit(self, plan: Plan, root: Path, folder: Path) -> None:
        key = f"{plan.setup.name} | limit"
        if key not in self.measured:
            self._keep(key, limit.images_per_second(plan.setup, root, folder / "limit", plan.limit_seconds))

    def _measure(self, plan: Plan, way: Way, place: int, root: Path, number: int, folder: Path) -> None:
        if way.has_costly_epochs and place >= plan.costly_counts:
            return
        epochs = plan.costly_epochs if way.has_costly_epochs else plan.setup.epochs
        works = [("runs", way.sweep, 1 if way.has_costly_epochs else plan.sweep[place])]
        if place == 0 and plan.finetunes:
            works.append(("fine-tunes", way.finetunes, 1 if way.has_costly_epochs else plan.finetunes))
        for work, start, count in works:
            key = self._key(plan.setup, way, work, plan.setup.counts[place], number)
            if key in self.measured:
                continue
            cache = folder / "cache"
            taken = list(itertools.islice(start(plan.setup, root, cache, epochs), count))
            shutil.rmtree(cache, ignore_errors=True)
            self._keep(key, [[seconds.value, seconds.is_measured] for seconds in taken])

    def _keep(self, key: str, value: Any) -> None:
        self.measured[key] = value
        print(f"{key}: {_brief(value)}", file=sys.stderr)
        self._save(self.measured)

    @staticmethod
    def _key(setup: Setup, way: Way, work: str, photos: int, number: int) -> str:
        return f"{setup.name} | {way.name} | {work} | {photos:,} photos | round {number + 1}"

    def rates(self, plan: Plan) -> dict[str, float]:
        """Return images a second of each engine's own loop."""
        return self.measured[f"{plan.setup.name} | limit"]

    def limit(self, plan: Plan, photos: int) -> float:
        """Return the seconds that the fastest engine's own loop takes for so many photos."""
        return photos / max(self.rates(plan).values())

    def runs(self, plan: Plan, way: Way, work: str, photos: int) -> list[Seconds]:
        """Return the duration of each run, the median over the rounds; an empty list if it was not measured."""
        keys = [self._key(plan.setup, way, work, photos, number) for number in range(plan.rounds)]
        rounds = [self.measured[key] for key in keys if key in self.measured]
        return [
            Seconds(statistics.median(seconds for seconds, _ in same), all(measured for _, measured in same))
            for same in zip(*rounds, strict=True)
        ]

    def cost(self, plan: Plan, way: Way, work: str, photos: int, count: int) -> Cost | None:
        """Return the cost of so many runs on so many photos; None if nothing of the kind was measured.

        Runs beyond those measured cost the median of all but the first; where only one was measured, those on the
        fewest photos in proportion. Where epochs are costly, photos beyond those measured cost in proportion, too.
        """
        runs = self.runs(plan, way, work, photos)
        on_fewest = self.runs(plan, way, work, plan.setup.counts[0])
        scale = photos / plan.setup.counts[0]
        if not runs:
            runs = [Seconds(scale * run.value, False) for run in on_fewest] if way.has_costly_epochs else []
        if not runs:
            return None
        used = runs[:count]
        seconds = sum(run.value for run in used)
        if count > len(used):
            further = [run.value for run in runs[1:]] or [scale * run.value for run in on_fewest[1:] or on_fewest]
            seconds += (count - len(used)) * statistics.median(further)
        return Cost(seconds, count <= len(runs) and all(run.is_measured for run in used))


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {rate:.1f} images/s" for name, rate in value.items())
    return ", ".join(f"{seconds:.1f} s" for seconds, _ in value) or "does not apply"
