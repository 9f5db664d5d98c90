"""The backbones of the study, and the images that each is studied on."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.data.dataset import Dataset, Source
from dogbreeds.data.miniature import Miniature
from dogbreeds.experiments.compose import compose_config, config_sources, from_config
from dogbreeds.experiments.run import Run

# Folder with `stanford_dogs_224/{train,test}/<class>/…` and `weights/…`.
REAL_DATA_ENV = "DOGBREEDS_REAL_DATA"
# Classes of the whole study, and images of each, for training, validation, test and truth together.
CLASSES = 120
IMAGES_PER_CLASS = 60
# Settings of every run. The pixels of all images are checked once for each backbone, not in each run.
_ALWAYS = ("tracking=none", "tracking.folder=null", "preflight=none", "baseline=none")


@dataclass(frozen=True)
class Backbone:
    """A pretrained backbone.

    Attributes:
        name: of the backbone in the lines and in the report.
        overrides: settings that choose it, such as `model=effnetb0 model.weights=…`, and its plugin if it has one.
        photos: folder with a folder of images for each class in `train` and `test`; None for drawn dogs.
        config_dir: folder with further configs, such as a plugin's; None for none.
    """

    name: str
    overrides: tuple[str, ...]
    photos: str | None = None
    config_dir: str | None = None

    def run(self, *overrides: str) -> Run:
        """Compose a run with this backbone. Of the settings of a key the last one counts."""
        data = ("data=miniature",) if self.photos is None else ("data=folder", f"data.root={self.photos}")
        last = {setting.split("=")[0]: setting for setting in (*_ALWAYS, *data, *self.overrides, *overrides)}
        sources = config_sources(self.config_dir)
        return from_config(compose_config("train", list(last.values()), sources=sources))


def backbones(further: tuple[Backbone, ...] = ()) -> dict[str, Backbone]:
    """Return the backbones by name: the miniature, those of `DOGBREEDS_REAL_DATA` if it is set, and further ones."""
    found = [Backbone("miniature", ("model=miniature",))]
    real = os.environ.get(REAL_DATA_ENV)
    if real:
        photos, weights = photo_folder(), Path(real) / "weights"
        found += [
            Backbone(
                "mobilenetv2",
                ("model=mobilenetv2", "model.alpha=0.35", f"model.weights={weights}/mobilenetv2_035_notop.weights.h5"),
                photos,
            ),
            Backbone(
                "effnetb0", ("model=effnetb0", f"model.weights={weights}/efficientnetb0_notop.weights.h5"), photos
            ),
        ]
    return {backbone.name: backbone for backbone in (*found, *further)}


def photo_folder() -> str | None:
    """Return the folder of the real photos; None without `DOGBREEDS_REAL_DATA`."""
    real = os.environ.get(REAL_DATA_ENV)
    return str(Path(real) / "stanford_dogs_224") if real else None


@functools.lru_cache(maxsize=2)
def open_images(photos: str | None, classes: int = CLASSES) -> tuple[Source, tuple[str, ...]]:
    """Open the images of a backbone as one source, since features are cached for each source as a whole.

    Args:
        photos: folder of the photos; None for drawn dogs.
        classes: the first ones of them.

    Returns:
        The source, and the name of each class.
    """
    if photos is None:
        drawn = Miniature(
            resize="stretch",
            decoder="pillow",
            on_corrupt="stop",
            max_corrupt_fraction=0.0,
            classes=classes,
            train_per_class=IMAGES_PER_CLASS,
            val_per_class=1,
            test_per_class=1,
        ).open()
        return drawn.train.source, drawn.class_names
    names = sorted(folder.name for folder in (Path(photos) / "train").iterdir())[:classes]
    paths = [
        path for name in names for part in ("train", "test") for path in sorted(Path(photos, part, name).iterdir())
    ]
    opened = Dataset.from_files(train=(paths, [path.parent.name for path in paths]))
    return opened.train.source, opened.class_names
