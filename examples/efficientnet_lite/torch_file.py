"""Reads tensors from a file of torch's legacy format, without torch and without running what the file says.

The format is five pickles, then the raw numbers. A pickle may name any function of Python and have it called: here it
may name what a file of tensors needs, and anything else is refused.
"""

import collections
import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

import dogbreeds

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# Types of storages, and how NumPy reads their numbers.
_STORAGE_TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
# What Python raises at a pickle that is damaged, or that does what is not allowed here.
_UNREADABLE = (
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class _Storage(NamedTuple):
    """A row of numbers, before it is read."""

    dtype: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view into a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`. It has no attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise pickle.UnpicklingError("a tensor has no storage, or a size that is no number")
        if len(shape) != len(strides):
            raise pickle.UnpicklingError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
        return _Tensor(storage, offset, shape, strides)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles dictionaries of tensors. Tensors and storages become descriptions of where their numbers are."""

    _ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        **{("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a file of tensors does not need")
        return self._ALLOWED[module, name]

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, _, size, view = identity
        if (kind, view) != ("storage", None) or dtype not in _STORAGE_TYPES.values() or type(size) is not int:
            raise pickle.UnpicklingError("a storage is not described as torch describes it")
        return _Storage(dtype, key, size)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, by name.

    Raises:
        dogbreeds.UserError: if the file is of another format, damaged, or names anything that tensors do not need.
    """
    try:
        with file.open("rb") as stream:
            return _read(stream)
    except _UNREADABLE as error:
        raise dogbreeds.UserError(
            f"{file} cannot be read as tensors: {str(error) or type(error).__name__}. It must be a state dict in the"
            " legacy format of torch, complete and with nothing else in it. Type pip install --force-reinstall for the"
            " package that it came with."
        ) from error


def _read(stream: BinaryIO) -> dict[str, np.ndarray]:
    magic_number, version, system = (_TensorUnpickler(stream).load() for _ in range(3))
    if (magic_number, version, system["little_endian"]) != (_MAGIC_NUMBER, _VERSION, True):
        raise pickle.UnpicklingError("its first numbers are not those of the format")
    state = _TensorUnpickler(stream).load()
    if not all(type(name) is str and isinstance(tensor, _Tensor) for name, tensor in state.items()):
        raise pickle.UnpicklingError("it holds something besides named tensors")
    keys = _TensorUnpickler(stream).load()
    numbers = _read_storages(stream.read(), keys, {tensor.storage.key: tensor.storage for tensor in state.values()})
    return {name: _view(name, tensor, numbers[tensor.storage.key]) for name, tensor in state.items()}


def _read_storages(content: bytes, keys: list[str], storages: dict[str, _Storage]) -> dict[str, np.ndarray]:
    """Read the numbers of the storages, which follow one another in the order of `keys`, each after its size."""
    found = {}
    position = 0
    for key in keys:
        storage = storages[key]
        (size,) = np.frombuffer(content, "<i8", 1, position)
        if size != storage.size:
            raise ValueError(f"storage {key} has {size} numbers and was announced with {storage.size}")
        found[key] = np.frombuffer(content, storage.dtype, storage.size, position + 8)
        position += 8 + found[key].nbytes
    if position != len(content):
        raise ValueError(f"{len(content) - position} bytes follow the last storage")
    return found


def _view(name: str, tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Return a tensor as an array of its own."""
    size = math.prod(tensor.shape)
    last = tensor.offset + sum(
        (length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    # More numbers than the storage has would be the same numbers again.
    if size > len(numbers) or last >= len(numbers):
        raise ValueError(f"{name} reaches beyond its storage of {len(numbers)} numbers")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False).copy()
