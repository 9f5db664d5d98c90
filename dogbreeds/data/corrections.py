"""Corrections of a data set: images to leave out, and images with another class, from tables such as an audit's.

A table has a column `image` with the names of images. Each row of `data.exclude` leaves its image out. A row of
`data.relabel` gives its image the class in the column `suggestion`; where there is a column `finding`, only rows of
`label_error` do. Where one table is given as both, its label errors are relabelled and all else is left out.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import counted, printable, restore_formula
from dogbreeds.data.dataset import Data, Dataset, Source, Split
from dogbreeds.data.table_file import read_table

LABEL_ERROR = "label_error"
_IMAGE, _FINDING, _SUGGESTION = "image", "finding", "suggestion"


def open_corrected(data: Data, given: Dataset | None = None) -> Dataset:
    """Open a data set with its corrections.

    Args:
        data: settings.
        given: the opened data set, if the caller has it; None opens that of the settings.

    Raises:
        MissingFileError: if the data or a table does not exist.
        UserError: if they cannot be read, or do not fit together.
    """
    dataset = given or data.open()
    if data.exclude is None and data.relabel is None:
        return dataset
    labels = {} if data.relabel is None else _relabelled(data.relabel, dataset)
    excluded = frozenset() if data.exclude is None else _excluded(data.exclude, dataset, labels)
    return _corrected(dataset, excluded, {name: label for name, label in labels.items() if name not in excluded})


def describe(num_excluded: int, num_relabelled: int) -> str:
    """State how many images were left out or relabelled; empty if none were."""
    changes = []
    if num_excluded:
        changes.append(f"{counted(num_excluded, 'image')} left out by data.exclude")
    if num_relabelled:
        changes.append(f"{counted(num_relabelled, 'image')} relabelled by data.relabel")
    return ", ".join(changes)


def _corrected(dataset: Dataset, excluded: frozenset[str], labels: Mapping[str, int]) -> Dataset:
    """Return a data set without some images, and with other labels of some, by their names."""
    # Splits share sources, whose arrays in the cache do not depend on labels.
    sources = {id(split.source): _relabel(split.source, labels) for split in dataset.splits.values()}
    splits: dict[str, Split] = {}
    num_excluded = num_relabelled = 0
    for name, split in dataset.splits.items():
        source = sources[id(split.source)]
        rows = np.array([row for row in split.rows if source.ids[row] not in excluded], split.rows.dtype)
        if not len(rows):
            raise UserError(
                f"data.exclude leaves out all images of {name}. Each split must keep one or more. Remove rows of"
                f" {name} from the table."
            )
        splits[name] = Split(source, rows)
        num_excluded += len(split.rows) - len(rows)
        num_relabelled += int((source.labels[rows] != split.source.labels[rows]).sum())
    note = describe(num_excluded, num_relabelled)
    return replace(
        dataset,
        train=splits["train"],
        val=splits["val"],
        test=splits.get("test"),
        notes=(*dataset.notes, *([note] if note else [])),
        num_excluded=num_excluded,
        num_relabelled=num_relabelled,
    )


def _relabel(source: Source, labels: Mapping[str, int]) -> Source:
    new = [labels.get(name, label) for name, label in zip(source.ids, source.labels.tolist(), strict=True)]
    return replace(source, labels=np.array(new, source.labels.dtype))


def _excluded(table: str, dataset: Dataset, relabelled: Mapping[str, int]) -> frozenset[str]:
    """Return the names of the images that a table leaves out."""
    rows = _rows("exclude", table, dataset)
    return frozenset(row[_IMAGE] for row in rows if row.get(_FINDING) != LABEL_ERROR or row[_IMAGE] not in relabelled)


def _relabelled(table: str, dataset: Dataset) -> dict[str, int]:
    """Return the class indices that a table gives to images, by their names."""
    index_by_name = {name: index for index, name in enumerate(dataset.class_names)}
    labels: dict[str, int] = {}
    for row in _rows("relabel", table, dataset, _SUGGESTION):
        if row.get(_FINDING, LABEL_ERROR) != LABEL_ERROR:
            continue
        image, class_name = row[_IMAGE], row[_SUGGESTION]
        if class_name not in index_by_name:
            names = ", ".join(dataset.class_names[:3])
            raise UserError(
                f"data.relabel={printable(table)} gives {printable(image)} the class {printable(class_name)!r}, which"
                f" {dataset.name} does not have. Its classes are {printable(names)}, … Correct the column"
                f" {_SUGGESTION}, or remove the row."
            )
        if labels.setdefault(image, index_by_name[class_name]) != index_by_name[class_name]:
            raise UserError(
                f"data.relabel={printable(table)} gives {printable(image)} two classes. An image has one. Remove one"
                " of the rows."
            )
    return labels


def _rows(setting: str, table: str, dataset: Dataset, *needed: str) -> list[dict[str, str]]:
    """Return the rows of a table with its columns `image`, `finding` and `suggestion`, as far as it has them."""
    path = Path(os.path.expanduser(table))
    if not path.is_file():
        raise MissingFileError(
            f"data.{setting}={printable(table)} is not a file (looked in {printable(os.path.abspath(path))}). It must"
            f" be a CSV or Parquet file with a column {_IMAGE}, such as an audit writes. Type data.{setting}=audit.csv,"
            " or leave it out."
        )
    read = read_table(path)
    for column in (_IMAGE, *needed):
        if column not in read:
            raise UserError(
                f"data.{setting}={printable(table)} has no column {column}, only"
                f" {', '.join(printable(str(name)) for name in read) or 'none'}. It needs"
                f" {' and '.join((_IMAGE, *needed))}. Give it the table that python -m dogbreeds.audit writes."
            )
    columns = [name for name in (_IMAGE, _FINDING, _SUGGESTION) if name in read]
    rows = [
        {name: restore_formula(cell) for name, cell in zip(columns, cells, strict=True)}
        for cells in read[columns].fillna("").astype(str).itertuples(index=False)
    ]
    known = {split.source.ids[row] for split in dataset.splits.values() for row in split.rows}
    unknown = [row[_IMAGE] for row in rows if row[_IMAGE] not in known]
    if unknown:
        example = next(iter(sorted(known)))
        raise UserError(
            f"data.{setting}={printable(table)} names {counted(len(unknown), 'image')} that {dataset.name} does not"
            f" have, such as {printable(unknown[0])!r}. Names are as an audit writes them, such as {example}. Audit"
            " this data set, or correct the table."
        )
    return rows
