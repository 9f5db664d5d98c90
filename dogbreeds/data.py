"""Data sets: which photos there are, what they show, and which of them train, validate and test.

A *source* is a fixed set of photos in a fixed order; a *split* is rows of a source. What the frozen backbone says of a source
is kept once, however the splits are then drawn, so that another seed costs no second pass over the photos.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.photo import ODD, OUTSIDE, SUFFIXES, Photo, Unreadable, decode, decode_file, digest, examine, printable
from dogbreeds.spec import Missing, Refused, Spec, integer, number, one_of, text

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_LEADING_OUT = re.compile(r"^/|(?<![^/])\.\.?(?![^/])")  # an absolute path's beginning, and the components . and ..


@dataclass(frozen=True)
class Source:
    """A fixed set of photos in a fixed order.

    Attributes:
        name: which part of the data set it is.
        labels: [n] int32, each below the number of classes.
        ids: a name for each photo, such as its path below the root; printable, and no path that leads anywhere else.
        digests: of each photo's bytes: equal ones are the same photo.
        fingerprint: of names, labels and contents; equal fingerprints are the same photos.
        read: goes over the photos in order; decoding happens when an item is called, so that it can happen in parallel.
    """

    name: str
    labels: np.ndarray
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    fingerprint: str
    read: Callable[[], Iterator[Photo]]


@dataclass(frozen=True)
class Split:
    """Rows of a source, ascending."""

    source: Source
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.rows]

    def without(self, rows: frozenset[int]) -> "Split":
        """The same split, less these rows of its source."""
        return Split(self.source, self.rows[~np.isin(self.rows, list(rows))]) if rows else self


@dataclass(frozen=True)
class Dataset:
    """An opened data set: `train` and `val`, and `test` where there is one."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    @property
    def fingerprint(self) -> str:
        """Of the photos and of which split each is in."""
        parts = [f"{name}:{split.source.fingerprint}:{digest(split.rows.tobytes())}" for name, split in self.splits.items()]
        return digest("\n".join([*self.class_names, *parts]).encode())


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows in two, class by class, the same way for the same seed.

    Args:
        labels: [n] class of each row.
        fraction: of each class to hold out, above 0 and below 1; at least one row is held out of each class and one stays.
        seed: 0 or more.

    Returns:
        The rows that stay and those held out, both ascending.

    Raises:
        Refused: where a class has a single row.
    """
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise Refused(
                f"Class number {label} has one photo, and validation has to be held out of it. "
                "Every class needs two photos or more, or a val folder of its own. Add photos, or make root/val/<class>/."
            )
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        order = np.random.Generator(np.random.Philox(key=[seed, int(label)])).permutation(len(rows))
        held.append(rows[order[:count]])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


@dataclass(frozen=True, kw_only=True)
class Data(Spec):
    """What every data set needs to know."""

    group = "data"
    resize: str = one_of("stretch", "pad", "crop")
    on_corrupt: str = one_of("stop", "skip")
    max_corrupt_fraction: float = number(at_least=0, at_most=1, example=0.01)

    def open(self) -> Dataset:
        """Finds the photos and draws the splits; decodes nothing.

        Raises:
            Missing: where the data is not there.
            Refused: where it cannot be trained on.
        """
        raise NotImplementedError

    def check_skipped(self, skipped: int, total: int, source: str) -> None:
        """Raises `Refused` where more photos were skipped than `max_corrupt_fraction` allows."""
        if skipped > self.max_corrupt_fraction * total:
            raise Refused(
                f"{skipped:,} of {total:,} photos of {source} cannot be read. "
                f"data.max_corrupt_fraction allows {self.max_corrupt_fraction:g} of them. "
                f"Mend the files, or type data.max_corrupt_fraction={min(1.0, round(1.2 * skipped / total, 3)):g}."
            )


@dataclass(frozen=True, kw_only=True)
class Miniature(Data):
    """Drawn dogs (`dogbreeds.miniature`): needs nothing, and draws the same photos everywhere."""

    breeds: int = integer(at_least=2, example=120)
    train_per_breed: int = integer(at_least=1, example=20)
    val_per_breed: int = integer(at_least=1, example=10)
    test_per_breed: int = integer(at_least=1, example=10)

    def __post_init__(self) -> None:
        from dogbreeds.miniature import BREEDS

        super().__post_init__()
        if self.breeds > BREEDS:
            raise Refused(f"data.breeds was {self.breeds}. There are {BREEDS} drawn breeds. Type data.breeds={BREEDS}, for example.")

    def _source(self, name: str, each: int) -> Source:
        from dogbreeds import miniature

        def read() -> Iterator[Photo]:
            for breed in range(self.breeds):
                for photo in range(each):
                    yield functools.partial(miniature.draw, name, breed, photo)

        labels = np.repeat(np.arange(self.breeds, dtype=np.int32), each)
        ids = tuple(f"{name}/{miniature.breed_name(breed)}/{photo}" for breed in range(self.breeds) for photo in range(each))
        # What is drawn follows from its name alone, and no two names give the same.
        return Source(name, labels, ids, ids, digest(f"miniature:{miniature.VERSION}:{name}:{self.breeds}:{each}".encode()), read)

    def open(self) -> Dataset:
        from dogbreeds import miniature

        counts = {"train": self.train_per_breed, "val": self.val_per_breed, "test": self.test_per_breed}
        train, val, test = (Split(source, np.arange(len(source.labels))) for source in (self._source(name, each) for name, each in counts.items()))
        return Dataset("miniature", tuple(miniature.breed_name(breed) for breed in range(self.breeds)), train, val, test)


@dataclass(frozen=True, kw_only=True)
class Folder(Data):
    """Photos on disk: `root/{train,val,test}/<class>/…`, the last two optional, or `root/<class>/…`."""

    root: str = text(example="path/to/photos", optional=True)
    val_fraction: float = number(above=0, below=1, example=0.2)
    split_seed: int = integer(at_least=0, example=0)

    def open(self) -> Dataset:
        root = self._root()
        parts = {name: root / name for name in ("train", "val", "test") if _is_folder(root, str(root / name))}
        if "train" not in parts:
            if parts:
                raise Refused(
                    f"{printable(str(root))} has {' and '.join(parts)} but no train. It must hold train/<class>/, with val and test if you like, "
                    f"or <class>/ folders alone. Make {printable(str(root / 'train'))}, or name another data.root."
                )
            parts = {"train": root}
        class_names = tuple(_class_folders(root, parts["train"]))
        if len(class_names) < 2:
            raise Refused(
                f"{printable(str(parts['train']))} has {len(class_names)} class folder{'' if len(class_names) == 1 else 's'}. "
                "There must be two or more, one for each breed. Name the folder above them in data.root."
            )
        opened = {name: self._source(root, name, folder, class_names) for name, folder in parts.items()}
        sources = {name: source for name, (source, _) in opened.items()}
        train_rows = np.arange(len(sources["train"].labels))
        if "val" in sources:
            val = Split(sources["val"], np.arange(len(sources["val"].labels)))
        else:
            train_rows, val_rows = hold_out(sources["train"].labels, self.val_fraction, self.split_seed)
            val = Split(sources["train"], val_rows)
        test = Split(sources["test"], np.arange(len(sources["test"].labels))) if "test" in sources else None
        notes = tuple(note for _, note in opened.values() if note)
        return Dataset(printable(root.name), class_names, Split(sources["train"], train_rows), val, test, notes)

    def labelled(self, class_names: tuple[str, ...]) -> tuple[Split, str]:
        """All photos of `root/<class>/…` as one split, and what was passed over.

        Args:
            class_names: those of a network; the folder may lack some of them, and have no others.
        """
        root = self._root()
        if not _class_folders(root, root):
            raise Refused(
                f"{printable(str(root))} has no class folders. It must hold <class>/ folders of photos, named as the network's classes are. "
                f"Make {printable(str(root / class_names[0]))}, for example, or name another folder; photos without labels are for predict."
            )
        source, note = self._source(root, root.name, root, class_names, "the network")
        return Split(source, np.arange(len(source.labels))), note

    def _root(self) -> Path:
        if self.root is None:
            raise Refused("data.root was not given. data=folder needs the folder that holds your photos. Type data.root=path/to/photos.")
        place = os.path.expanduser(self.root)
        if not os.path.isdir(place):
            raise Missing(
                f"data.root={printable(self.root)} is not a folder (looked in {printable(os.path.abspath(place))}). "
                "It must hold train/<class>/ or <class>/ folders of photos. Type data.root=path/to/photos."
            )
        return Path(os.path.realpath(place))

    def _source(self, root: Path, name: str, folder: Path, class_names: tuple[str, ...], known: str = "train") -> tuple[Source, str]:
        strangers = [found for found in _class_folders(root, folder) if found not in class_names]
        if strangers:
            more = f" (and {len(strangers) - 1} more)" if strangers[1:] else ""
            fix = (
                "Add its photos to train, or remove the folder."
                if known == "train"
                else "Name the folder right above the class folders, or remove it."
            )
            raise Refused(
                f"{printable(str(folder / strangers[0]))} is a class that {known} does not have{more}. "
                f"Classes of {name} must be among those of {known}. {fix}"
            )
        files: list[os.DirEntry[str]] = []
        labels = []
        for label, class_name in enumerate(class_names):
            there = (folder / class_name).is_dir()
            found = photos_below(folder / class_name) if there else []
            if there and not found:
                raise Refused(
                    f"{printable(str(folder / class_name))} has no photos. Every class folder needs files ending in {', '.join(SUFFIXES)}. "
                    "Add photos, or remove the folder."
                )
            files += found
            labels += [label] * len(found)
        return self._readable(root, name, files, labels)

    def _readable(self, root: Path, name: str, files: "list[os.DirEntry[str]]", labels: list[int]) -> tuple[Source, str]:
        found = examine_below(root, files)
        bad = [digest for digest in found if isinstance(digest, Unreadable)]
        if bad and self.on_corrupt == "stop":
            raise bad[0]
        self.check_skipped(len(bad), len(files), name)
        kept = [(file.path, label, digest) for file, label, digest in zip(files, labels, found, strict=True) if isinstance(digest, str)]
        chosen = tuple((path, digest) for path, _, digest in kept)
        ids = tuple(printable(path[len(str(root)) :].lstrip(os.sep)) for path, _ in chosen)
        described = [f"{label} {identity} {digest}" for (_, label, digest), identity in zip(kept, ids, strict=True)]
        source = Source(
            name,
            np.asarray([label for _, label, _ in kept], dtype=np.int32),
            ids,
            tuple(digest for _, digest in chosen),
            digest("\n".join(described).encode()),
            lambda: (functools.partial(decode_file, path, digest) for path, digest in chosen),
        )
        note = f"{len(bad)} of {len(files):,} photos of {name} skipped: {bad[0].args[0].split('. ')[0]}" if bad else ""
        return source, note


def examine_below(root: Path, files: "Sequence[os.DirEntry[str]]") -> list[str | Unreadable]:
    """`examine` of files below a folder, where a link that leads out of it is `Unreadable`."""
    outside = {file.path: _outside(root, file.path) for file in files if file.is_symlink() and not is_within(root, file.path)}
    inside = [file.path for file in files if file.path not in outside]
    found = {**outside, **dict(zip(inside, examine(inside), strict=True))}
    return [found[file.path] for file in files]


def is_within(root: Path, path: str) -> bool:
    """Whether what a path leads to, links and all, lies below a folder that is no link itself."""
    return os.path.commonpath([root, os.path.realpath(path)]) == str(root)


def _outside(root: Path, path: str) -> Unreadable:
    return Unreadable(
        f"{printable(path)} is a link to {printable(os.path.realpath(path))}, out of data.root={printable(str(root))}. "
        "Photos must lie below it. Copy the photo there, or type data.on_corrupt=skip.",
        OUTSIDE,
    )


def _class_folders(root: Path, folder: Path) -> list[str]:
    found = [entry for entry in _listed(folder) if not entry.name.startswith(".") and _is_folder(root, entry.path)]
    for entry in found:
        if ODD.search(entry.name):
            raise Refused(
                f"{printable(entry.path)} has a name that is not UTF-8 or has control characters. "
                "A class folder's name is what the model will call its photos. Rename the folder."
            )
    return sorted(entry.name for entry in found)


def _is_folder(root: Path, path: str) -> bool:
    """Whether there is a folder at a path; `Refused` where a link there leads to one out of the root, or nowhere."""
    if os.path.islink(path) and not os.path.isfile(path) and not (os.path.isdir(path) and is_within(root, path)):
        raise Refused(
            f"{printable(path)} is a link to {printable(os.path.realpath(path))}, which is no folder below data.root={printable(str(root))}. "
            "Folders of photos must lie below it. Put the folder itself there, remove the link, or name another data.root."
        )
    return os.path.isdir(path)


def photos_below(folder: Path) -> "list[os.DirEntry[str]]":
    """All files below a folder that are named as photos are, sorted; links to folders are not gone into.

    Raises:
        Refused: where a folder may not be listed.
    """
    found, folders = [], [str(folder)]
    while folders:
        for entry in _listed(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.path)


def _listed(folder: str | Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(str(folder)) as entries:
            return list(entries)
    except OSError as error:
        raise Refused(
            f"{printable(str(folder))} cannot be listed ({error.strerror}). Folders of photos must be ones that you may read. Mend or remove it."
        ) from error


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
            train_rows, val_rows = hold_out(everything.labels, self.val_fraction, self.guide_seed)
            return Dataset("stanford_dogs", class_names, Split(everything, train_rows), Split(everything, val_rows), None)
        train, test = _tfds_source(builder, "train"), _tfds_source(builder, "test")
        train_rows, val_rows = hold_out(train.labels, self.val_fraction, self.split_seed)
        whole = Split(test, np.arange(len(test.labels)))
        return Dataset("stanford_dogs", class_names, Split(train, train_rows), Split(train, val_rows), whole)

    def _builder(self) -> "tfds.core.DatasetBuilder":
        import tensorflow_datasets as tfds

        builder = tfds.builder("stanford_dogs", data_dir=self.root)
        if not builder.data_path.exists():
            try:
                builder.download_and_prepare()
            except (OSError, tfds.download.DownloadError) as error:
                raise Missing(
                    f"Stanford Dogs is not at {builder.data_path} and could not be downloaded from vision.stanford.edu "
                    f"({' '.join(str(error).split())[:100]}). It is needed once, 778 MiB, prepared by TensorFlow Datasets. "
                    "Type data.root=<folder> if another machine prepared it, data=folder data.root=<photos> for a folder of photos, "
                    "or model=miniature, which needs nothing."
                ) from error
        return builder


def _tfds_source(builder: "tfds.core.DatasetBuilder", split: str) -> Source:
    import tensorflow_datasets as tfds

    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)  # one file after the other: a fixed order

    def rows() -> Iterator[dict]:
        wanted = {"image": tfds.features.Image(), "label": builder.info.features["label"], "image/filename": tfds.features.Text()}
        decoders = tfds.decode.PartialDecoding(wanted, decoders={"image": tfds.decode.SkipDecoding()})
        yield from tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders, shuffle_files=False, read_config=config))

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
