"""Stanford Dogs data set, loaded through TensorFlow Datasets."""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import MissingFileError
from dogbreeds.core.spec import number, one_of, path, seed
from dogbreeds.core.text import digest, printable, shorten
from dogbreeds.data.dataset import Data, Dataset, Source, Split, stratified_split
from dogbreeds.data.image import ImageLoader, decode

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# What could make an id a path out of a folder: a leading slash, and the components . and ..
_PATH_ESCAPE = re.compile(r"^/|(?<![^/])\.\.?(?![^/])")


@dataclass(frozen=True, kw_only=True)
class StanfordDogs(Data):
    """Stanford Dogs: 120 classes, 12,000 training and 8,580 test images in the official split.

    Source: Khosla et al. 2011; https://www.tensorflow.org/datasets/catalog/stanford_dogs.

    Attributes:
        split: `official` holds validation data out of the official training data; `guide` splits all 20,580 images
            80/20 and has no test data, as the guide did.
        root: folder of TensorFlow Datasets; null for its default.
        val_fraction: fraction of each class to hold out for validation.
        split_seed: seed of the validation split with `official`.
        guide_seed: seed of the validation split with `guide`.
    """

    split: str = one_of("official", "guide")
    root: str | None = path(example="/data/tensorflow_datasets", optional=True)
    val_fraction: float = number(above=0, below=1, example=0.2)
    split_seed: int = seed()
    guide_seed: int = seed(example=42)

    def open(self) -> Dataset:
        builder = self._builder()
        class_names = tuple(builder.info.features["label"].names)
        if self.split == "guide":
            source = _tfds_source(builder, "train+test")
            train_rows, val_rows = stratified_split(source.labels, self.val_fraction, self.guide_seed, class_names)
            test: Split | None = None
        else:
            source = _tfds_source(builder, "train")
            test_source = _tfds_source(builder, "test")
            train_rows, val_rows = stratified_split(source.labels, self.val_fraction, self.split_seed, class_names)
            test = Split(test_source, np.arange(len(test_source.labels)))
        return Dataset(
            name="stanford_dogs",
            class_names=class_names,
            train=Split(source, train_rows),
            val=Split(source, val_rows),
            test=test,
        )

    def _builder(self) -> "tfds.core.DatasetBuilder":
        import tensorflow_datasets as tfds

        builder = tfds.builder("stanford_dogs", data_dir=self.root)
        if not builder.data_path.exists():
            try:
                builder.download_and_prepare()
            except (OSError, tfds.download.DownloadError) as error:
                raise MissingFileError(
                    f"Stanford Dogs is not at {builder.data_path} and could not be downloaded from vision.stanford.edu"
                    f" ({shorten(str(error), 100)}). TensorFlow Datasets downloads and prepares it once, 778"
                    " MiB. Type data.root=<folder> if another machine prepared it, data=folder data.root=<images> for a"
                    " folder of images, or model=miniature, which needs no download."
                ) from error
        return builder


def _tfds_source(builder: "tfds.core.DatasetBuilder", split: str) -> Source:
    import tensorflow_datasets as tfds

    # Files are read one after the other, which fixes the order of the images.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)

    def rows() -> Iterator[dict]:
        features = {
            "image": tfds.features.Image(),
            "label": builder.info.features["label"],
            "image/filename": tfds.features.Text(),
        }
        decoders = tfds.decode.PartialDecoding(features, decoders={"image": tfds.decode.SkipDecoding()})
        yield from tfds.as_numpy(
            builder.as_dataset(split=split, decoders=decoders, shuffle_files=False, read_config=config)
        )

    def loaders() -> Iterator[ImageLoader]:
        for row in rows():
            yield functools.partial(decode, row["image"], _image_id(row["image/filename"]))

    labels: list[int] = []
    ids: list[str] = []
    digests: list[str] = []
    fingerprint = hashlib.blake2b(digest_size=16)
    for row in rows():
        labels.append(int(row["label"]))
        ids.append(_image_id(row["image/filename"]))
        digests.append(digest(row["image"]))
        fingerprint.update(f"{labels[-1]} {ids[-1]} {digests[-1]}\n".encode())
    return Source(
        name=split,
        labels=np.asarray(labels, dtype=np.int32),
        ids=tuple(ids),
        digests=tuple(digests),
        fingerprint=fingerprint.hexdigest(),
        loaders=loaders,
    )


def _image_id(filename: bytes) -> str:
    """Make a file name of an untrusted archive printable, and harmless as a path."""
    name = printable(filename.decode("utf-8", "surrogateescape"))
    return _PATH_ESCAPE.sub(lambda found: "".join(f"\\x{ord(letter):02x}" for letter in found[0]), name)
