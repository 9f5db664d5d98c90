"""Command `python -m dogbreeds.pretrain`: the weight file that it writes."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from dogbreeds.pretrain import compress_to_float16

ARRAYS = {"layers/dense/vars/0": np.linspace(-1, 1, 60, dtype=np.float32).reshape(12, 5), "step": np.int64(7)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "miniature.weights.h5"
    with h5py.File(path, "w") as file:
        for name, value in ARRAYS.items():
            file[name] = value
    return path


def test_compress_to_float16_halves_floats_and_leaves_integers(weights: Path) -> None:
    compress_to_float16(weights)
    with h5py.File(weights) as file:
        floats, step = file["layers/dense/vars/0"], file["step"]
        assert (floats.dtype, step.dtype, step[()]) == (np.float16, np.int64, 7)
        assert np.array_equal(floats[()], ARRAYS["layers/dense/vars/0"].astype(np.float16))
    assert list(weights.parent.iterdir()) == [weights]


def test_compress_to_float16_leaves_the_file_as_it_is_when_interrupted(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights.read_bytes()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py.Group, "create_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress_to_float16(weights)
    assert weights.read_bytes() == before
    assert list(weights.parent.iterdir()) == [weights]
