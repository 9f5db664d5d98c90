"""Image classification data sets of TensorFlow Datasets."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import number, path, seed, text
from dogbreeds.core.text import digest, printable, shorten
from dogbreeds.data.dataset import Data, Dataset, Source
from dogbreeds.data.image import EncodedImage, ImageLoader
from dogbreeds.data.labelled_files import assemble_dataset

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# A data set, with its config and version if wanted: oxford_flowers102, cifar10_corrupted/fog_1, mnist:3.0.1. Other
# forms name sets of other providers, whose code would be downloaded and executed.
_NAME = re.compile(r"[a-z0-9_]+(/[\w.\-]+)?(:[\d.*]+)?", re.ASCII)
# Names of the validation split, in order of preference.
_VALIDATION = ("validation", "val", "valid", "dev")
# Features that may hold an image's file name.
_FILE_NAMES = ("image/filename", "file_name", "filename", "image/file_name", "image_id", "id")
# What could make an id a path out of a folder: a leading slash, and the components . and ..
_PATH_ESCAPE = re.compile(r"^/|(?<![^/])\.\.?(?![^/])")

_ABSENT = (
    "{name} is not at {path} and could not be downloaded ({reason}). TensorFlow Datasets downloads and prepares a data"
    " set once. Type data.root=<folder> if another machine prepared it, or data=folder data.root=<images> for a folder"
    " of images."
)


@dataclass(frozen=True, kw_only=True)
class Tfds(Data):
    """A data set of TensorFlow Datasets with one image and one class label in each example.

    Its split `train` is needed. `validation` and `test` are used if they exist; without `validation`, images are held
    out of `train`.

    Attributes:
        name: name in the catalog, with config and version if wanted: `name/config:version`; null if it was not set.
        root: folder of TensorFlow Datasets; null for its default.
        image: name of the feature that holds the image; null for the only one.
        label: name of the feature that holds the class; null for the only one.
        val_fraction: fraction of each class to hold out for validation, where there is no validation split.
        split_seed: seed of that split.
    """

    name: str | None = text(example="oxford_flowers102", optional=True)
    root: str | None = path(example="/data/tensorflow_datasets", optional=True)
    image: str | None = text(example="image", optional=True)
    label: str | None = text(example="label", optional=True)
    val_fraction: float = number(above=0, below=1, example=0.2)
    split_seed: int = seed()

    def open(self) -> Dataset:
        if self.name is None or not _NAME.fullmatch(self.name):
            raise UserError(
                f"data.name was {self.name!r}. data=tfds needs a name from TensorFlow Datasets' catalog, such as"
                " oxford_flowers102 or cifar10_corrupted/fog_1. Type data.name=oxford_flowers102, for example."
            )
        builder = open_builder(self.name, self.root, _ABSENT)
        image = self._feature(builder, "image", self.image)
        label = self._feature(builder, "label", self.label)
        splits = {name: name for name in ("train", "test") if name in builder.info.splits}
        validation = next((name for name in _VALIDATION if name in builder.info.splits), None)
        if validation:
            splits["val"] = validation
        if "train" not in splits:
            raise UserError(
                f"{self.name} has no split train, only {', '.join(sorted(builder.info.splits)) or 'none'}. Training"
                " needs one. Choose another data set with data.name=<name>."
            )
        sources = {name: tfds_source(builder, split, image, label) for name, split in splits.items()}
        class_names = tuple(printable(name) for name in builder.info.features[label].names)
        if len(class_names) < 2:
            raise UserError(
                f"{self.name} has {len(class_names)} class in its feature {label}. There must be two or more. Choose"
                " another feature with data.label=<name>, or another data set with data.name=<name>."
            )
        return assemble_dataset(builder.name, class_names, sources, self.val_fraction, self.split_seed)

    def _feature(self, builder: "tfds.core.DatasetBuilder", setting: str, chosen: str | None) -> str:
        """Return the name of the feature that holds the image or the label: the chosen one, or the only one.

        Raises:
            UserError: if there is no such feature, or if there are several and none was chosen.
        """
        import tensorflow_datasets as tfds

        kind = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}[setting]
        features = builder.info.features
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        supervised = [name for name in builder.info.supervised_keys or () if name in found]
        fitting = [chosen] if chosen in found else [] if chosen else supervised[:1] or found
        if len(fitting) == 1:
            return str(fitting[0])
        received = f"data.{setting}={chosen} is no" if chosen else f"{self.name} has {len(found)} features that are an"
        example = f"Type data.{setting}={found[0]}." if found else "Choose another data set with data.name=<name>."
        raise UserError(
            f"{received} {kind.__name__} of {self.name}. One of its features must be chosen:"
            f" {', '.join(found) or 'it has none'}. {example}"
        )


def open_builder(name: str, root: str | None, absent: str) -> "tfds.core.DatasetBuilder":
    """Return the builder of a data set, which is downloaded and prepared if it is not there.

    Args:
        name: in the catalog.
        root: folder of TensorFlow Datasets; None for its default.
        absent: message if it can be neither found nor downloaded, with fields for `name`, `path` and `reason`.

    Raises:
        UserError: if there is no data set, config or version of that name.
        MissingFileError: if it is not there and could not be downloaded.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root)
    # TFDS raises each of them for a name that is wrong: unknown set, unknown config, unknown version.
    except (ValueError, AssertionError) as error:
        reason = shorten(str(error).splitlines()[0], 200).rstrip(":")
        raise UserError(
            f"data.name={name} is no data set ({reason}). It must be a name from TensorFlow Datasets' catalog, or"
            " of a data set that data.root holds. Type data.name=oxford_flowers102, for example."
        ) from error
    if not builder.data_path.exists():
        try:
            builder.download_and_prepare()
        except (OSError, tfds.download.DownloadError) as error:
            reason = shorten(str(error), 100)
            raise MissingFileError(absent.format(name=name, path=builder.data_path, reason=reason)) from error
    return builder


def tfds_source(builder: "tfds.core.DatasetBuilder", split: str, image: str = "image", label: str = "label") -> Source:
    """Open a split of a prepared data set as a source.

    Args:
        builder: of the data set.
        split: as TFDS names it, such as `train+test`.
        image: name of the feature that holds the image.
        label: name of the feature that holds the class.
    """
    import tensorflow_datasets as tfds

    # Files are read one after the other, which fixes the order of the images.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    known = builder.info.features
    names = [name for name in _FILE_NAMES if name in known and isinstance(known[name], tfds.features.Text)]
    features = {name: known[name] for name in (image, label, *names[:1])}

    def rows() -> Iterator[dict]:
        decoders = tfds.decode.PartialDecoding(features, decoders={image: tfds.decode.SkipDecoding()})
        yield from tfds.as_numpy(
            builder.as_dataset(split=split, decoders=decoders, shuffle_files=False, read_config=config)
        )

    labels: list[int] = []
    ids: list[str] = []
    digests: list[str] = []
    for index, row in enumerate(rows()):
        labels.append(int(row[label]))
        ids.append(_image_id(row[names[0]]) if names else f"{split}/{index}")
        digests.append(digest(row[image]))
    # Predictions are stored by id.
    if len(set(ids)) < len(ids):
        ids = [f"{split}/{index}" for index in range(len(ids))]

    def loaders() -> Iterator[ImageLoader]:
        for name, row in zip(ids, rows(), strict=True):
            yield EncodedImage(functools.partial(bytes, row[image]), name)

    described = "".join(f"{row[0]} {row[1]} {row[2]}\n" for row in zip(labels, ids, digests, strict=True))
    return Source(
        name=split,
        labels=np.asarray(labels, dtype=np.int32),
        ids=tuple(ids),
        digests=tuple(digests),
        fingerprint=digest(described.encode()),
        loaders=loaders,
    )


def _image_id(filename: bytes) -> str:
    """Make a file name of an untrusted archive printable, and harmless as a path."""
    name = printable(filename.decode("utf-8", "surrogateescape"))
    return _PATH_ESCAPE.sub(lambda found: "".join(f"\\x{ord(letter):02x}" for letter in found[0]), name)
