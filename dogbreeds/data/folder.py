"""Data set of the user's own images, in one folder per class."""

import os
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import any_path, number, seed
from dogbreeds.core.text import UNPRINTABLE, printable
from dogbreeds.data.dataset import Data, Dataset, Source, Split
from dogbreeds.data.files import images_below, is_within, list_folder
from dogbreeds.data.image import SUFFIXES
from dogbreeds.data.labelled_files import LabelledFile, assemble_dataset, readable_source, whole


@dataclass(frozen=True, kw_only=True)
class Folder(Data):
    """Images on disk: `root/{train,val,test}/<class>/…`, of which val and test are optional, or `root/<class>/…`.

    Attributes:
        root: the folder; null if it was not set.
        val_fraction: fraction of each class to hold out for validation, where there is no val folder.
        split_seed: seed of that split.
    """

    root: str = any_path(example="path/to/images")
    val_fraction: float = number(above=0, below=1, example=0.2)
    split_seed: int = seed()

    def open(self) -> Dataset:
        root = self._resolved_root()
        parts = _part_folders(root)
        class_names = tuple(_class_folders(root, parts["train"]))
        if len(class_names) < 2:
            raise UserError(
                f"{printable(str(parts['train']))} has {len(class_names)} class"
                f" folder{'' if len(class_names) == 1 else 's'}. There must be two or more, one for each class. Set"
                " data.root to the folder that contains them."
            )
        opened = {name: self._open_source(root, name, folder, class_names) for name, folder in parts.items()}
        return assemble_dataset(
            printable(root.name),
            class_names,
            {name: source for name, (source, _) in opened.items()},
            self.val_fraction,
            self.split_seed,
            [note for _, note in opened.values()],
        )

    def labelled_split(self, class_names: tuple[str, ...]) -> tuple[Split, str]:
        """Open all images of `root/<class>/…` as one split.

        Args:
            class_names: classes of the network. The folder must not have others, and need not have all of them.

        Returns:
            The split, and a sentence about skipped images, empty if there are none.

        Raises:
            MissingFileError: if the folder does not exist.
            UserError: if it has no class folders, or an unknown class.
        """
        root = self._resolved_root()
        if not _class_folders(root, root):
            raise UserError(
                f"{printable(str(root))} has no class folders. It must contain <class>/ folders of images, named as the"
                f" network's classes are. Create {printable(str(root / class_names[0]))}, for example, or name another"
                " folder; for images without labels, use predict."
            )
        source, note = self._open_source(root, root.name, root, class_names, known_to="the network")
        return whole(source), note

    def _resolved_root(self) -> Path:
        if self.root is None:
            raise UserError(
                "data.root was not given. data=folder needs the folder that contains your images. Type"
                " data.root=path/to/images."
            )
        path = os.path.expanduser(self.root)
        if not os.path.isdir(path):
            raise MissingFileError(
                f"data.root={printable(self.root)} is not a folder (looked in {printable(os.path.abspath(path))}). "
                "It must contain train/<class>/ or <class>/ folders of images. Type data.root=path/to/images."
            )
        return Path(os.path.realpath(path))

    def _open_source(
        self, root: Path, name: str, folder: Path, class_names: tuple[str, ...], known_to: str = "train"
    ) -> tuple[Source, str]:
        """Open the images of one part. Returns the source and a sentence about skipped images."""
        _check_known(root, name, folder, class_names, known_to)
        files: list[LabelledFile] = []
        for label, class_name in enumerate(class_names):
            exists = (folder / class_name).is_dir()
            found = images_below(folder / class_name) if exists else []
            if exists and not found:
                raise UserError(
                    f"{printable(str(folder / class_name))} has no images. Every class folder needs files ending in"
                    f" {', '.join(SUFFIXES)}. Add images, or remove the folder."
                )
            files += [LabelledFile(file.path, label) for file in found]
        return readable_source(self, root, name, files)


def _part_folders(root: Path) -> dict[str, Path]:
    """Return the folders of train, val and test, as far as they exist; without them, the root is train."""
    parts = {name: root / name for name in ("train", "val", "test") if _is_folder(root, str(root / name))}
    if "train" in parts:
        return parts
    if parts:
        raise UserError(
            f"{printable(str(root))} has {' and '.join(parts)} but no train. It must contain train/<class>/, with val"
            f" and test optional, or <class>/ folders alone. Create {printable(str(root / 'train'))}, or set data.root"
            " to another folder."
        )
    return {"train": root}


def _check_known(root: Path, name: str, folder: Path, class_names: tuple[str, ...], known_to: str) -> None:
    """Raise `UserError` if a part has a class folder that is not one of the classes."""
    unknown = [found for found in _class_folders(root, folder) if found not in class_names]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
        fix = (
            "Add its images to train, or remove the folder."
            if known_to == "train"
            else "Name the folder that directly contains the class folders, or remove this one."
        )
        raise UserError(
            f"{printable(str(folder / unknown[0]))} is a class that {known_to} does not have{more}. "
            f"Classes of {name} must be among those of {known_to}. {fix}"
        )


def _class_folders(root: Path, folder: Path) -> list[str]:
    """Return the sorted names of the class folders in a folder. Hidden ones are left out."""
    found = [entry for entry in list_folder(folder) if not entry.name.startswith(".") and _is_folder(root, entry.path)]
    for entry in found:
        if UNPRINTABLE.search(entry.name):
            raise UserError(
                f"{printable(entry.path)} has a name that is not UTF-8 or has control characters. "
                "A class folder's name becomes the name of the class. Rename the folder."
            )
    return sorted(entry.name for entry in found)


def _is_folder(root: Path, path: str) -> bool:
    """Return whether a path is a folder.

    Raises:
        UserError: if it is a symbolic link that is broken, or leads to a folder outside the root.
    """
    if os.path.islink(path) and not os.path.isfile(path) and not (os.path.isdir(path) and is_within(root, path)):
        raise UserError(
            f"{printable(path)} is a link to {printable(os.path.realpath(path))}, which is not a folder inside"
            f" data.root={printable(str(root))}. Image folders must be inside data.root. Put the folder itself there,"
            " remove the link, or set data.root to another folder."
        )
    return os.path.isdir(path)
