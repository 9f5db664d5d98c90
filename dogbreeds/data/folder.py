"""Images of one's own, in a folder for each class."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import integer, number, text
from dogbreeds.core.text import ODD, digest, printable
from dogbreeds.data.dataset import Data, Dataset, Source, Split, stratified_split
from dogbreeds.data.files import _listed, decode_file, examine_below, is_within, photos_below
from dogbreeds.data.image import SUFFIXES, Unreadable


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
                raise UserError(
                    f"{printable(str(root))} has {' and '.join(parts)} but no train. It must hold train/<class>/, with"
                    f" val and test if you like, or <class>/ folders alone. Make {printable(str(root / 'train'))}, or"
                    " name another data.root."
                )
            parts = {"train": root}
        class_names = tuple(_class_folders(root, parts["train"]))
        if len(class_names) < 2:
            raise UserError(
                f"{printable(str(parts['train']))} has {len(class_names)} class"
                f" folder{'' if len(class_names) == 1 else 's'}. There must be two or more, one for each breed. Name"
                " the folder above them in data.root."
            )
        opened = {name: self._source(root, name, folder, class_names) for name, folder in parts.items()}
        sources = {name: source for name, (source, _) in opened.items()}
        train_rows = np.arange(len(sources["train"].labels))
        if "val" in sources:
            val = Split(sources["val"], np.arange(len(sources["val"].labels)))
        else:
            train_rows, val_rows = stratified_split(sources["train"].labels, self.val_fraction, self.split_seed)
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
            raise UserError(
                f"{printable(str(root))} has no class folders. It must hold <class>/ folders of photos, named as the"
                f" network's classes are. Make {printable(str(root / class_names[0]))}, for example, or name another"
                " folder; photos without labels are for predict."
            )
        source, note = self._source(root, root.name, root, class_names, "the network")
        return Split(source, np.arange(len(source.labels))), note

    def _root(self) -> Path:
        if self.root is None:
            raise UserError(
                "data.root was not given. data=folder needs the folder that holds your photos. Type"
                " data.root=path/to/photos."
            )
        place = os.path.expanduser(self.root)
        if not os.path.isdir(place):
            raise MissingFileError(
                f"data.root={printable(self.root)} is not a folder (looked in {printable(os.path.abspath(place))}). "
                "It must hold train/<class>/ or <class>/ folders of photos. Type data.root=path/to/photos."
            )
        return Path(os.path.realpath(place))

    def _source(
        self, root: Path, name: str, folder: Path, class_names: tuple[str, ...], known: str = "train"
    ) -> tuple[Source, str]:
        strangers = [found for found in _class_folders(root, folder) if found not in class_names]
        if strangers:
            more = f" (and {len(strangers) - 1} more)" if strangers[1:] else ""
            fix = (
                "Add its photos to train, or remove the folder."
                if known == "train"
                else "Name the folder right above the class folders, or remove it."
            )
            raise UserError(
                f"{printable(str(folder / strangers[0]))} is a class that {known} does not have{more}. "
                f"Classes of {name} must be among those of {known}. {fix}"
            )
        files: list[os.DirEntry[str]] = []
        labels = []
        for label, class_name in enumerate(class_names):
            there = (folder / class_name).is_dir()
            found = photos_below(folder / class_name) if there else []
            if there and not found:
                raise UserError(
                    f"{printable(str(folder / class_name))} has no photos. Every class folder needs files ending in"
                    f" {', '.join(SUFFIXES)}. Add photos, or remove the folder."
                )
            files += found
            labels += [label] * len(found)
        return self._readable(root, name, files, labels)

    def _readable(
        self, root: Path, name: str, files: "list[os.DirEntry[str]]", labels: list[int]
    ) -> tuple[Source, str]:
        found = examine_below(root, files)
        bad = [digest for digest in found if isinstance(digest, Unreadable)]
        if bad and self.on_corrupt == "stop":
            raise bad[0]
        self.check_skipped(len(bad), len(files), name)
        kept = [
            (file.path, label, digest)
            for file, label, digest in zip(files, labels, found, strict=True)
            if isinstance(digest, str)
        ]
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


def _class_folders(root: Path, folder: Path) -> list[str]:
    found = [entry for entry in _listed(folder) if not entry.name.startswith(".") and _is_folder(root, entry.path)]
    for entry in found:
        if ODD.search(entry.name):
            raise UserError(
                f"{printable(entry.path)} has a name that is not UTF-8 or has control characters. "
                "A class folder's name is what the model will call its photos. Rename the folder."
            )
    return sorted(entry.name for entry in found)


def _is_folder(root: Path, path: str) -> bool:
    """Whether there is a folder at a path; `UserError` where a link there leads to one out of the root, or nowhere."""
    if os.path.islink(path) and not os.path.isfile(path) and not (os.path.isdir(path) and is_within(root, path)):
        raise UserError(
            f"{printable(path)} is a link to {printable(os.path.realpath(path))}, which is no folder below"
            f" data.root={printable(str(root))}. Folders of photos must lie below it. Put the folder itself there,"
            " remove the link, or name another data.root."
        )
    return os.path.isdir(path)
