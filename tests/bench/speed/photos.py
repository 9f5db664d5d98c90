"""Photos and backbones to measure with: real ones if DOGBREEDS_REAL_DATA names their folder, else drawn dogs."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dogbreeds.data import drawn_dogs
from dogbreeds.experiments import compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.run import Run

BATCH, FINETUNE_BATCH, FINETUNE_LAYERS = 32, 16, 20
FINETUNE = (
    "unfreeze=last_n",
    f"unfreeze.layers={FINETUNE_LAYERS}",
    "optimizer.lr=1e-5",
    f"phase.batch_size={FINETUNE_BATCH}",
)


@dataclass(frozen=True)
class Setup:
    """A backbone, and how many photos it sees.

    Attributes:
        name: for the report.
        model: overrides that choose the backbone.
        classes: number of classes.
        each: photos of each class, ascending; a fifth is for validation.
        epochs: epochs of every run.
        change: change to every run that no override can make.
    """

    name: str
    model: tuple[str, ...]
    classes: int
    each: tuple[int, ...]
    epochs: int = 6
    change: Callable[[Run], Run] = lambda run: run

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of photos."""
        return tuple(self.classes * each for each in self.each)

    def compose(self, root: Path, cache: Path, *overrides: str) -> Run:
        """Compose a run on a folder of photos, with feature cache and checkpoints in a place of its own."""
        requested = [
            *self.model,
            "data=folder",
            f"data.root={root}",
            f"features.dir={cache}",
            f"checkpoint_dir={cache}_checkpoints",
            f"phase.epochs={self.epochs}",
            "phase.patience_epochs=null",
            f"phase.batch_size={BATCH}",
            "tracking=none",
            "tracking.folder=null",
            *overrides,
        ]
        last = {override.split("=")[0]: override for override in requested}
        return self.change(from_config(compose.compose_config("train", list(last.values()))))


def real_data() -> Path | None:
    """Return the folder that DOGBREEDS_REAL_DATA names."""
    place = os.environ.get("DOGBREEDS_REAL_DATA")
    return Path(place) if place else None


def b0(classes: int, each: tuple[int, ...]) -> Setup:
    """Return EfficientNet-B0 at 224 px, with the weights beside the real photos if there are any."""
    place = real_data()
    weights = f"{place}/weights/efficientnetb0_notop.weights.h5" if place else "null"
    return Setup("EfficientNet-B0, 224 px", ("model=effnetb0", f"model.weights={weights}"), classes, each)


def b4(classes: int, each: tuple[int, ...]) -> Setup:
    """Return EfficientNet-B4 at 380 px with random weights, which cost the same once the pixels are checked.

    They are not checked: weights without trained statistics would need the whole network in each convention, where
    trained ones need the first layers.
    """
    settings = ("model=effnetb4", "model.weights=null", "preflight=none")
    return Setup("EfficientNet-B4, 380 px", settings, classes, each)


def write_photos(root: Path, classes: int, each: int) -> Path:
    """Write the first photos of the first classes as `root/<class>/<file>`, and return the folder."""
    place = real_data()
    if place:
        for source in sorted((place / "stanford_dogs_224/train").iterdir())[:classes]:
            (root / source.name).mkdir(parents=True)
            for photo in sorted(source.iterdir())[:each]:
                shutil.copy(photo, root / source.name)
        return root
    for label in range(classes):
        folder = root / drawn_dogs.breed_name(label)
        folder.mkdir(parents=True)
        for number in range(each):
            Image.fromarray(drawn_dogs.draw("train", label, number)).save(folder / f"{number}.jpg", quality=95)
    return root
