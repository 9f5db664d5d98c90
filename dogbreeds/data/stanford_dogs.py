"""Stanford Dogs, by TensorFlow Datasets."""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import MissingFileError
from dogbreeds.core.spec import integer, number, one_of, text
from dogbreeds.core.text import digest, printable
from dogbreeds.data.dataset import Data, Dataset, Source, Split, stratified_split
from dogbreeds.data.image import Photo, decode

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# An absolute path's beginning, and the components . and ..
_LEADING_OUT = re.compile(r"^/|(?<![^/])\.\.?(?![^/])")


@dataclass(frozen=True, kw_only=True)
class StanfordDogs(Data):
    """Stanford Dogs through TensorFlow Datasets: 120 breeds, 12,000 train and 8,580 test photos in the official split.

    `split=official` holds validation out of the official train; `split=guide` splits all 20,580 photos 80/20 and has no test, as the
    guide did. Source: Khosla et al. 2011; https://www.tensorflow.org/datasets/catalog/stanford_dogs.
    """

    split: str = one_of("official", "guide")
    root: str | None = text(example="~/tensorflow_datasets", optional=True)
    val_fraction: float = number(above=0, below=1, example=0.2)
    split_seed: int = integer(at_least=0, example=0)
    guide_seed: int = integer(at_least=0, example=42)

    def open(self) -> Dataset:
        builder = self._builder()
        class_names = tuple(builder.info.features["label"].names)
        if self.split == "guide":
            everything = _tfds_source(builder, "train+test")
            train_rows, val_rows = stratified_split(everything.labels, self.val_fraction, self.guide_seed)
            return Dataset(
                "stanford_dogs", class_names, Split(everything, train_rows), Split(everything, val_rows), None
            )
        train, test = _tfds_source(builder, "train"), _tfds_source(builder, "test")
        train_rows, val_rows = stratified_split(train.labels, self.val_fraction, self.split_seed)
        whole = Split(test, np.arange(len(test.labels)))
        return Dataset("stanford_dogs", class_names, Split(train, train_rows), Split(train, val_rows), whole)

    def _builder(self) -> "tfds.core.DatasetBuilder":
        import tensorflow_datasets as tfds

        builder = tfds.builder("stanford_dogs", data_dir=self.root)
        if not builder.data_path.exists():
            try:
                builder.download_and_prepare()
            except (OSError, tfds.download.DownloadError) as error:
                raise MissingFileError(
                    f"Stanford Dogs is not at {builder.data_path} and could not be downloaded from vision.stanford.edu"
                    f" ({' '.join(str(error).split())[:100]}). It is needed once, 778 MiB, prepared by TensorFlow"
                    " Datasets. Type data.root=<folder> if another machine prepared it, data=folder data.root=<photos>"
                    " for a folder of photos, or model=miniature, which needs nothing."
                ) from error
        return builder


def _tfds_source(builder: "tfds.core.DatasetBuilder", split: str) -> Source:
    import tensorflow_datasets as tfds

    # One file after the other: a fixed order
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)

    def rows() -> Iterator[dict]:
        wanted = {
            "image": tfds.features.Image(),
            "label": builder.info.features["label"],
            "image/filename": tfds.features.Text(),
        }
        decoders = tfds.decode.PartialDecoding(wanted, decoders={"image": tfds.decode.SkipDecoding()})
        yield from tfds.as_numpy(
            builder.as_dataset(split=split, decoders=decoders, shuffle_files=False, read_config=config)
        )

    def read() -> Iterator[Photo]:
        for row in rows():
            yield functools.partial(decode, row["image"], _identity(row["image/filename"]))

    labels, ids, digests = [], [], []
    whole = hashlib.blake2b(digest_size=16)
    for row in rows():
        labels.append(int(row["label"]))
        ids.append(_identity(row["image/filename"]))
        digests.append(digest(row["image"]))
        whole.update(f"{labels[-1]} {ids[-1]} {digests[-1]}\n".encode())
    return Source(split, np.asarray(labels, dtype=np.int32), tuple(ids), tuple(digests), whole.hexdigest(), read)


def _identity(filename: bytes) -> str:
    """A photo's name in an archive that anybody may have made: printable, and no path that leads out of a folder."""
    name = printable(filename.decode("utf-8", "surrogateescape"))
    return _LEADING_OUT.sub(lambda found: "".join(f"\\x{ord(letter):02x}" for letter in found[0]), name)
