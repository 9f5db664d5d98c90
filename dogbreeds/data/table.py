"""Data set of images that a table lists: a CSV or Parquet file with the path, the class and the split of each image."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import boolean, number, path, seed, text
from dogbreeds.core.text import UNPRINTABLE, printable
from dogbreeds.data.dataset import Data, Dataset
from dogbreeds.data.files import is_within
from dogbreeds.data.labelled_files import LabelledFile, assemble_dataset, readable_source
from dogbreeds.data.table_file import read_table

if TYPE_CHECKING:
    import pandas as pd

# Split by what a table calls it.
_SPLITS = {"": "train", "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SPLITS |= {"dev": "val", "test": "test", "testing": "test"}


@dataclass(frozen=True, kw_only=True)
class Table(Data):
    """Images listed in a table: one row each, with a path, a class and, if wanted, a split.

    Relative paths start at the folder of the table. Rows of `split` are train, val (or validation) and test; rows
    without one train. If none is val, validation images are held out of train.

    Attributes:
        table: the CSV or Parquet file; null if it was not set. Columns of a CSV file are separated by commas,
            semicolons or tabs.
        image_column: name of the column of paths.
        label_column: name of the column of class names.
        split_column: name of the column of splits, which the table need not have.
        root: folder that must contain all images; null for the folder of the table.
        outside_root: whether paths may lead out of `root`.
        val_fraction: fraction of each class to hold out for validation, where no row is val.
        split_seed: seed of that split.
    """

    table: str | None = path(example="path/to/images.csv", optional=True)
    image_column: str = text(example="image")
    label_column: str = text(example="label")
    split_column: str = text(example="split")
    root: str | None = path(example="path/to/images", optional=True)
    outside_root: bool = boolean()
    val_fraction: float = number(above=0, below=1, example=0.2)
    split_seed: int = seed()

    def open(self) -> Dataset:
        path = self._existing_table()
        root = self._resolved_root(path)
        rows = self._rows(path)
        class_names = tuple(sorted(set(rows.label[rows.split == "train"])))
        self._check(path, root, rows, class_names)
        labels = {class_name: label for label, class_name in enumerate(class_names)}
        opened = {}
        for name in ("train", "val", "test"):
            of_split = rows[rows.split == name]
            if len(of_split):
                files = [
                    LabelledFile(file, labels[class_name])
                    for file, class_name in zip(of_split.path, of_split.label, strict=True)
                ]
                opened[name] = readable_source(self, root, name, files, may_be_outside=self.outside_root)
        return assemble_dataset(
            printable(path.stem),
            class_names,
            {name: source for name, (source, _) in opened.items()},
            self.val_fraction,
            self.split_seed,
            [note for _, note in opened.values()],
        )

    def _existing_table(self) -> Path:
        if self.table is None:
            raise UserError(
                "data.table was not given. data=csv needs a CSV or Parquet file that lists your images and their"
                " classes. Type data.table=path/to/images.csv."
            )
        path = Path(os.path.expanduser(self.table))
        if not path.is_file():
            raise MissingFileError(
                f"data.table={printable(self.table)} is not a file (looked in {printable(os.path.abspath(path))}). It"
                f" must be a CSV or Parquet file with columns {self.image_column} and {self.label_column}. Type"
                " data.table=path/to/images.csv."
            )
        return Path(os.path.realpath(path))

    def _resolved_root(self, table: Path) -> Path:
        if self.root is None:
            return table.parent
        path = os.path.expanduser(self.root)
        if not os.path.isdir(path):
            raise MissingFileError(
                f"data.root={printable(self.root)} is not a folder (looked in {printable(os.path.abspath(path))}). It"
                " must contain all images of the table. Type data.root=path/to/images, or leave it out for the"
                " table's own folder."
            )
        return Path(os.path.realpath(path))

    def _rows(self, path: Path) -> "pd.DataFrame":
        """Read the table.

        Returns:
            A frame with the columns `number` of the row, `path`, `label` and `split`; the rows of a split are sorted by
            path, so that another order of the table is the same data set.
        """
        import pandas as pd

        read = read_table(path)
        for column in (self.image_column, self.label_column):
            if column not in read:
                raise UserError(
                    f"{printable(str(path))} has no column {column}, only"
                    f" {', '.join(printable(str(name)) for name in read) or 'none'}. It needs a column of paths and one"
                    " of classes. Type data.image_column=<name> data.label_column=<name>."
                )
        columns = {"path": read[self.image_column], "label": read[self.label_column]}
        if self.split_column in read:
            columns["split"] = read[self.split_column]
        rows = pd.DataFrame(columns).fillna("").astype(str)
        # As spreadsheets count: the names of the columns are row 1.
        rows["number"] = range(2, len(rows) + 2)
        rows["label"] = rows.label.str.strip()
        if "split" not in rows:
            rows["split"] = ""
        wanted = rows.split.str.strip().str.lower()
        unknown = rows[~wanted.isin(_SPLITS)]
        if len(unknown):
            raise UserError(
                f"{_row(path, unknown)} has the split {printable(unknown.split.iloc[0])}. A split is train, val or"
                f" test, or empty for train. Mend the column {self.split_column}, or type data.split_column=<name>."
            )
        rows["split"] = wanted.map(_SPLITS)
        empty = rows[(rows.path == "") | (rows.label == "")]
        if len(empty):
            raise UserError(
                f"{_row(path, empty)} has no {self.label_column if empty.path.iloc[0] else self.image_column}. Every"
                " row needs a path and a class. Fill it in, or remove the row."
            )
        folder = str(path.parent)
        rows["path"] = [os.path.normpath(os.path.join(folder, name)) for name in rows.path]
        return rows.sort_values("path", kind="stable")

    def _check(self, path: Path, root: Path, rows: "pd.DataFrame", class_names: tuple[str, ...]) -> None:
        """Raise an error unless the rows name two classes or more, and existing files below the root once each."""
        if len(class_names) < 2:
            raise UserError(
                f"{printable(str(path))} has {len(class_names)} class{'' if len(class_names) == 1 else 'es'} to train."
                " There must be two or more. Add rows of other classes."
            )
        unknown = rows[~rows.label.isin(class_names)]
        if len(unknown):
            raise UserError(
                f"{_row(path, unknown)} has the class {printable(unknown.label.iloc[0])}, which no row of train has."
                " Classes of val and test must be among those of train. Add images of it to train, or remove the row."
            )
        unprintable = rows[rows.label.str.contains(UNPRINTABLE) | rows.path.str.contains("\0", regex=False)]
        if len(unprintable):
            raise UserError(
                f"{_row(path, unprintable)} has control characters in its class or its path. Both must be text. Rename"
                " the class or the image."
            )
        twice = rows[rows.duplicated("path", keep=False)]
        if len(twice):
            numbers = sorted(twice.number[twice.path == twice.path.iloc[0]])
            raise UserError(
                f"{printable(twice.path.iloc[0])} has {len(numbers)} rows in {printable(str(path))}, first"
                f" {numbers[0]} and {numbers[1]}. An image has one. Remove the others."
            )
        missing = rows[[not os.path.lexists(file) for file in rows.path]]
        if len(missing) and self.on_corrupt == "stop":
            raise MissingFileError(
                f"{len(missing):,} of the {len(rows):,} images of {printable(str(path))} are missing, first"
                f" {printable(missing.path.iloc[0])} (row {missing.number.iloc[0]}). Relative paths start at the folder"
                " of the table. Mend the paths, or type data.on_corrupt=skip."
            )
        outside = rows[[not self.outside_root and not is_within(root, file) for file in rows.path]]
        if len(outside):
            raise UserError(
                f"{_row(path, outside)} names {printable(os.path.realpath(outside.path.iloc[0]))}, outside"
                f" {printable(str(root))}. Images must be inside data.root, by default the folder of the table. Type"
                " data.root=<folder>, or data.outside_root=true to allow it."
            )


def _row(table: Path, rows: "pd.DataFrame") -> str:
    """Name the first of some rows, for a message."""
    return f"Row {rows.number.iloc[0]} of {printable(str(table))}"
