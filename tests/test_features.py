from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.augment import Guide, Plain
from dogbreeds.data import Folder, Miniature, Source
from dogbreeds.features import Features, Photos, View, compute
from dogbreeds.kept import Store
from dogbreeds.model import Miniature as MiniatureModel
from dogbreeds.network import Prefix, assemble
from dogbreeds.photo import Unreadable
from dogbreeds.preprocessing import Preprocessing
from dogbreeds.spec import Refused
from dogbreeds.unfreeze import Blocks, Nothing

MODES = {"batchnorm": "frozen", "drop_connect": "off"}
DATA = Miniature(breeds=10, train_per_breed=3, val_per_breed=1, test_per_breed=1, resize="stretch", on_corrupt="stop", max_corrupt_fraction=0.01)


@pytest.fixture
def features(tmp_path: Path):
    yield Features(dir=str(tmp_path / "kept"), dtype="float32", max_gigabytes=1, batch_size=16)
    Store.release()


def prefix(mode: str = "raw", policy=None) -> Prefix:
    backbone = MiniatureModel(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    plan = (policy or Nothing(**MODES)).plan(backbone.blocks)
    return assemble(backbone, Preprocessing(mode=mode), plan, lambda features: None).prefix  # type: ignore[arg-type,return-value]


def plain_keras(pixels: np.ndarray, mode: str = "raw") -> np.ndarray:
    """The reference, of plain Keras layers: preprocessing, backbone and pooling in inference mode."""
    import keras

    network = MiniatureModel(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0).network
    shown = pixels.astype(np.float32)
    if mode != "raw":
        shown = keras.applications.imagenet_utils.preprocess_input(shown.copy(), mode=mode)
    return np.asarray(network(shown, training=False)).mean(axis=(1, 2))


@pytest.mark.parametrize("mode", ["raw", "torch"])
def test_kept_features_are_what_keras_computes(features: Features, mode: str) -> None:
    source = DATA.open().train.source
    kept = compute(prefix(mode), Photos(source, DATA, 64, features.store()), features)
    pixels = np.stack([photo() for photo in source.read()])
    assert kept.shape == (30, 640)
    assert np.allclose(kept, plain_keras(pixels, mode), atol=1e-4, rtol=1e-4)


def test_decoding_and_computing_happen_once(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    source, reads, computed = DATA.open().train.source, [], []
    counted = Source(source.name, source.labels, source.ids, source.digests, source.fingerprint, lambda: reads.append(1) or source.read())
    photos = Photos(counted, DATA, 64, features.store())
    built = prefix()
    run = built.compiled
    monkeypatch.setitem(built.__dict__, "compiled", lambda pixels: computed.append(len(pixels)) or run(pixels))
    first = compute(built, photos, features)
    again = compute(built, photos, features)
    assert np.array_equal(first, again)
    assert sum(computed) == 30
    compute(prefix("torch"), photos, features)
    compute(prefix(policy=Blocks(top=1, names=(), **MODES)), photos, features)
    assert reads == [1]  # other pixels and another cut need other features, but the same photos


def test_float16_halves_the_disk_and_stays_near(features: Features) -> None:
    half = Features(dir=features.dir, dtype="float16", max_gigabytes=1, batch_size=16)
    photos = Photos(DATA.open().train.source, DATA, 64, features.store())
    single, rounded = compute(prefix(), photos, features), compute(prefix(), photos, half)
    assert rounded.dtype == np.float16
    assert rounded.nbytes * 2 == single.nbytes
    assert np.allclose(single, rounded, rtol=1e-3, atol=1e-3)


def test_a_view_is_the_prefix_of_augmented_photos(features: Features) -> None:
    source = DATA.open().train.source
    augment = Guide(
        copies=2, rotation_degrees=20, horizontal_flip=True, shear_radians=0.15, shift_fraction=0.2, zoom_fraction=0.2,
        brightness_fraction=0.2, contrast_fraction=0.2,
    )  # fmt: skip
    rows = np.array([1, 4, 9, 20])
    photos = Photos(source, DATA, 64, features.store())
    kept = compute(prefix(), photos, features, View(augment, 1, 7, rows))
    pixels = np.stack([photo() for photo in source.read()])[rows]
    assert np.allclose(kept, plain_keras(augment.view(pixels, rows, 1, 7)), atol=1e-4, rtol=1e-4)
    other = compute(prefix(), photos, features, View(augment, 0, 7, rows))
    assert not np.allclose(kept, other, atol=1e-2)
    plain = compute(prefix(), photos, features, View(Plain(), 0, 7, rows))
    assert np.allclose(plain, compute(prefix(), photos, features)[rows], atol=1e-4)


@pytest.mark.parametrize("on_corrupt", ["stop", "skip"])
def test_a_photo_that_is_cut_off(photos: Callable[..., Path], features: Features, on_corrupt: str) -> None:
    root = photos(train=20)
    path = root / "train/breed_1/3.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    data = Folder(root=str(root), val_fraction=0.2, split_seed=0, resize="stretch", on_corrupt=on_corrupt, max_corrupt_fraction=0.05)
    source = data.open().train.source
    shown = Photos(source, data, 64, features.store())
    if on_corrupt == "stop":
        with pytest.raises(Unreadable, match=r"train/breed_1/3\.jpg cannot be read as a photo"):
            compute(prefix(), shown, features)
        assert features.store().entries() == []
        return
    compute(prefix(), shown, features)
    bad = source.ids.index("train/breed_1/3.jpg")
    assert shown.skipped() == {bad}
    split = data.open().train
    assert len(split.without(shown.skipped()).rows) == len(split.rows) - (bad in split.rows)
    strict = Folder(root=str(root), val_fraction=0.2, split_seed=0, resize="pad", on_corrupt="skip", max_corrupt_fraction=0.01)
    with pytest.raises(Refused, match=r"1 of 60 photos of train cannot be read\. data\.max_corrupt_fraction allows 0\.01 of them\."):
        compute(prefix(), Photos(source, strict, 64, features.store()), features)
