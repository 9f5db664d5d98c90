"""Data sets from Python: images in arrays, or image files, with their labels. See `Dataset.from_arrays`."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import UNPRINTABLE, digest, printable
from dogbreeds.data.dataset import Dataset, Source
from dogbreeds.data.files import examine, examined_image
from dogbreeds.data.image import UnreadableImageError
from dogbreeds.data.labelled_files import assemble_dataset, labelled_source

# Images, or the paths of image files, and their labels.
Part = tuple[Any, Any]
# From the name of a part, what its images are in, and their class indices [n], to the source.
_OpenSource = Callable[[str, Any, np.ndarray], Source]


def arrays_dataset(parts: Mapping[str, Part | None], **settings: Any) -> Dataset:
    """Build the data set of `Dataset.from_arrays`.

    Args:
        parts: images and labels of `train`, `val` and `test`.
        settings: `class_names`, `name`, `val_fraction` and `split_seed`.
    """
    return _dataset({name: part for name, part in parts.items() if part is not None}, _array_source, **settings)


def files_dataset(parts: Mapping[str, Part | None], **settings: Any) -> Dataset:
    """Build the data set of `Dataset.from_files`; the arguments are as those of `arrays_dataset`, with paths."""
    present = {name: (_paths(name, part[0]), part[1]) for name, part in parts.items() if part is not None}
    # Names do not depend on where the files lie.
    root = os.path.commonpath([os.path.dirname(path) for paths, _ in present.values() for path in paths])
    return _dataset(present, functools.partial(_file_source, root), **settings)


def _dataset(
    parts: Mapping[str, Part],
    open_source: _OpenSource,
    class_names: Sequence[str] | None,
    name: str,
    val_fraction: float,
    split_seed: int,
) -> Dataset:
    labels = {part: _check_labels(part, of_part) for part, (_, of_part) in parts.items()}
    names = _check_class_names(class_names) if class_names is not None else _class_names(labels["train"])
    sources = {
        part: open_source(part, images, _class_indices(part, labels[part], names))
        for part, (images, _) in parts.items()
    }
    return assemble_dataset(name, names, sources, val_fraction, split_seed)


# --- labels -------------------------------------------------------------------


def _check_labels(part: str, labels: Any) -> np.ndarray:
    """Return labels as [n] of integers or strings."""
    array = np.asarray(labels)
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.flat):
        array = array.astype(str)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iuU":
        raise UserError(
            f"The labels of {part} have the shape {list(array.shape)} and the type {array.dtype}. They must be class"
            " numbers or class names, one for each image and at least one. Type labels.argmax(axis=1) if they are"
            " one-hot."
        )
    return array


def _class_names(labels: np.ndarray) -> tuple[str, ...]:
    """Return the names of the classes that training labels have."""
    if labels.dtype.kind == "U":
        return _check_class_names(sorted(set(labels.tolist())))
    return _check_class_names([f"class {number}" for number in range(int(labels.max()) + 1)])


def _check_class_names(names: Sequence[str]) -> tuple[str, ...]:
    wrong = [name for name in names if not isinstance(name, str) or not name or UNPRINTABLE.search(name)]
    if len(names) < 2 or len(set(names)) < len(names) or wrong:
        received = f"class_names has {wrong[0]!r}" if wrong else f"There are {len(set(names))} different class names"
        raise UserError(
            f"{received}, of {len(names)} in all. There must be two or more, each different, without control"
            " characters. Type class_names=['cat', 'dog'], for example."
        )
    return tuple(names)


def _class_indices(part: str, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the class index of each label, [n] int32."""
    index_by_label: dict[Any, int] = {name: index for index, name in enumerate(names)}
    if labels.dtype.kind != "U":
        index_by_label = {index: index for index in range(len(names))}
    unknown = [label for label in labels.tolist() if label not in index_by_label]
    if unknown:
        more = ", …" if len(names) > 5 else ""
        allowed = f"one of {', '.join(names[:5])}{more}" if labels.dtype.kind == "U" else f"from 0 to {len(names) - 1}"
        raise UserError(
            f"{part} has the label {unknown[0]!r}. Labels must be {allowed}. Correct the labels, or type"
            " class_names=[…] with all classes."
        )
    return np.array([index_by_label[label] for label in labels.tolist()], dtype=np.int32)


def _check_count(part: str, images: int, labels: np.ndarray) -> None:
    if images != len(labels):
        raise UserError(
            f"{part} has {images:,} images and {len(labels):,} labels. Each image needs one label. Give both in the"
            f" same order: {part}=(images, labels)."
        )


# --- sources ------------------------------------------------------------------


def _array_source(part: str, images: Any, labels: np.ndarray) -> Source:
    # A list may have images of several sizes.
    arrays = [np.asarray(image) for image in images] if isinstance(images, (list, tuple)) else np.asarray(images)
    _check_count(part, len(arrays), labels)
    wrong = next((image for image in arrays if not _is_rgb(image)), None)
    if wrong is not None:
        raise UserError(
            f"An image of {part} has the shape {list(wrong.shape)} and the type {wrong.dtype}. Images must be RGB in"
            " [height, width, 3], as uint8 from 0 to 255. Type (255 * images).astype('uint8') for floats up to 1,"
            " np.stack([images] * 3, axis=-1) for grey ones."
        )
    digests = [digest(str(image.shape).encode() + image.tobytes()) for image in arrays]
    ids = [f"{part}/{row}" for row in range(len(arrays))]
    return labelled_source(part, labels, ids, digests, [functools.partial(np.asarray, image) for image in arrays])


def _is_rgb(image: np.ndarray) -> bool:
    return image.ndim == 3 and image.shape[2] == 3 and image.size > 0 and image.dtype == np.uint8


def _paths(part: str, paths: Any) -> list[str]:
    """Return the absolute paths of a part's files."""
    found = [os.path.abspath(Path(path).expanduser()) for path in paths]
    repeated = [path for path, count in Counter(found).items() if count > 1]
    if not found or repeated:
        received = f"{part} names {printable(repeated[0])} twice" if repeated else f"{part} names no files"
        raise UserError(
            f"{received}. Each split must name one or more files, each once. Type"
            f" {part}=(['rex.jpg', 'tom.jpg'], ['dog', 'cat']), for example."
        )
    return found


def _file_source(root: str, part: str, paths: Sequence[str], labels: np.ndarray) -> Source:
    _check_count(part, len(paths), labels)
    digests = []
    for result in examine(paths):
        if isinstance(result, UnreadableImageError):
            raise UserError(result.message_without_skip) from result
        digests.append(result)
    ids = [printable(os.path.relpath(path, root)) for path in paths]
    loaders = [examined_image(path, of_file) for path, of_file in zip(paths, digests, strict=True)]
    return labelled_source(part, labels, ids, digests, loaders)
