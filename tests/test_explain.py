"""Grad-CAM beside its definition, computed plainly on the whole network; where heat lies on a photo; pictures and their names."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.data.image import Unreadable
from dogbreeds.data.resize import resizer
from dogbreeds.inference.classifier import Classifier
from dogbreeds.inference.grad_cam import _NAME, Overlays, grad_cam, overlay, placed
from dogbreeds.inference.image_sources import Named
from dogbreeds.models.head import MLP, Linear
from dogbreeds.models.model import Miniature
from dogbreeds.models.network import Network, assemble
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import All, LastN, Nothing, Unfreeze

FROZEN = {"batchnorm": "frozen", "drop_connect": "off"}
NAMES = ("akita", "beagle", "collie", "dingo")
PHOTOS = np.stack([drawn_dogs.draw("test", breed, 0) for breed in range(5)])


def build(policy: Unfreeze, linear: bool = False, mode: str = "raw") -> Network:
    backbone = Miniature(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    head = Linear(dropout=0.0) if linear else MLP(widths=[16], dropout=0.5)
    return assemble(
        backbone,
        Preprocessing(mode=mode),
        policy.plan(backbone.blocks),
        lambda features: head.build(features, len(NAMES), 0),
    )


def saved(network: Network, folder: Path, resize: str = "stretch") -> Classifier:
    from dogbreeds.inference.classifier import load

    network.whole(NAMES, resize).save(folder / "model.keras")
    return load(folder / "model.keras")


def by_definition(network: Network, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and Grad-CAM by the paper's words: the tape watches the maps and goes backwards through pooling and head; positions are averaged."""
    import keras
    import tensorflow as tf

    last = network.suffix or network.prefix.graph
    to_maps = keras.Model(last.input, last.get_layer("pool").input)
    shown = tf.cast(pixels, tf.float32)
    if network.suffix is not None:
        shown = network.prefix.graph(shown, training=False)
    with tf.GradientTape() as tape:
        # [b, h, w, c]
        maps = to_maps(shown, training=False)
        tape.watch(maps)
        logits = network.head(keras.ops.mean(maps, axis=(1, 2)), training=False)
        top = tf.reduce_max(logits, axis=-1)
    # [b, c]
    weights = tape.gradient(top, maps).numpy().mean(axis=(1, 2))
    heat = np.maximum((maps.numpy() * weights[:, None, None, :]).sum(axis=-1), 0)
    return logits.numpy(), heat / heat.max(axis=(1, 2), keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "mode"),
    [
        (LastN(layers=20, exact=False, **FROZEN), "raw"),
        pytest.param(Nothing(**FROZEN), "caffe", marks=pytest.mark.long),
        pytest.param(All(**FROZEN), "torch", marks=pytest.mark.long),
    ],
)
def test_grad_cam_is_what_its_definition_gives(policy: Unfreeze, mode: str, tmp_path: Path) -> None:
    network = build(policy, mode=mode)
    classifier = saved(network, tmp_path)
    logits, heat = grad_cam(classifier)(PHOTOS)
    expected_logits, expected = by_definition(network, PHOTOS)
    assert heat.shape == expected.shape == (5, 2, 2)
    assert np.allclose(logits, expected_logits, atol=1e-4)
    assert np.allclose(logits, classifier.logits(PHOTOS), atol=1e-4)
    assert np.allclose(heat, expected, atol=1e-3)
    assert heat.min() >= 0
    assert np.allclose(heat.max(axis=(1, 2)), 1)
    assert np.ptp(heat) > 0.5


@pytest.fixture(scope="module")
def one_channel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, np.ndarray]:
    """A network whose second breed is one channel of the maps and nothing else, and that channel [b, h, w] of the photos."""
    network = build(Nothing(**FROZEN), linear=True)
    classifier = saved(network, tmp_path_factory.mktemp("one_channel"))
    maps = classifier.ends[0](PHOTOS.astype(np.float32)).numpy()
    # Above 0 on all photos
    channel = int(maps.mean(axis=(1, 2)).min(axis=0).argmax())
    kernel, bias = classifier.ends[1].weights
    kernel.assign(np.zeros(kernel.shape))
    bias.assign(np.zeros(bias.shape))
    kernel.assign(np.where((np.arange(kernel.shape[0]) == channel)[:, None] & (np.arange(len(NAMES)) == 1), 3.0, 0.0))
    return classifier, maps[..., channel]


@pytest.mark.slow
def test_where_one_channel_decides_the_heat_is_that_channel(one_channel: tuple[Classifier, np.ndarray]) -> None:
    classifier, channel = one_channel
    logits, heat = grad_cam(classifier)(PHOTOS)
    assert logits.argmax(axis=1).tolist() == [1] * 5
    assert np.allclose(logits[:, 1], 3 * channel.mean(axis=(1, 2)), atol=1e-4)
    positive = np.maximum(channel, 0)
    assert np.allclose(heat, positive / positive.max(axis=(1, 2), keepdims=True), atol=1e-4)


@pytest.mark.slow
def test_where_nothing_speaks_for_a_breed_there_is_no_heat(one_channel: tuple[Classifier, np.ndarray]) -> None:
    classifier, _ = one_channel
    kernel, bias = classifier.ends[1].weights
    before = kernel.numpy()
    try:
        kernel.assign(np.zeros(kernel.shape))
        bias.assign([0.0, 0.0, 5.0, 0.0])
        logits, heat = grad_cam(classifier)(PHOTOS)
    finally:
        kernel.assign(before)
        bias.assign(np.zeros(bias.shape))
    assert logits.argmax(axis=1).tolist() == [2] * 5
    assert not heat.any()


# --- on the photo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stretch", "pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(300, 120), (120, 300), (201, 200), (64, 64)])
def test_heat_lies_where_the_network_saw_it(how: str, height: int, width: int) -> None:
    """A bright square is put somewhere, resized as the network does, and found again by what is bright in the small photo."""
    top, left, side = height // 2 - 20, width // 2 - 10, 30
    photo = np.zeros((height, width, 3), np.uint8)
    photo[top : top + side, left : left + side] = 255
    small = resizer(32, how)(photo)[..., 0].astype(np.float32) / 255
    if how == "pad":
        # The grey around
        small[small == np.float32(128 / 255)] = 0
    heat = placed(small, height, width, how)
    assert heat.shape == (height, width)
    assert heat.min() >= 0
    assert heat.max() <= 1
    rows, columns = np.nonzero(heat > 0.6)
    # Of a cell of the small photo
    reach = 0.7 * max(height, width) / 32 + 2
    for found, wanted in (
        (rows.min(), top),
        (rows.max(), top + side - 1),
        (columns.min(), left),
        (columns.max(), left + side - 1),
    ):
        assert abs(found - wanted) <= reach


def test_what_was_cropped_away_is_cold_and_padding_is_left_out() -> None:
    hot = np.ones((4, 4), np.float32)
    cropped = placed(hot, 10, 30, "crop")
    assert (cropped[:, 10:20] == 1).all()
    assert not cropped[:, :10].any()
    assert not cropped[:, 20:].any()
    top_only = np.zeros((4, 4), np.float32)
    # Of the square: in the padding of a wide photo
    top_only[0] = 1
    assert not placed(top_only, 10, 40, "pad").any()
    assert (placed(hot, 10, 40, "pad") == 1).all()


def test_heat_is_mixed_in_by_its_strength_and_the_caption_stands_below() -> None:
    from matplotlib import colormaps

    grey = np.full((400, 400, 3), 100, np.uint8)
    assert np.array_equal(np.asarray(overlay(grey, np.zeros((2, 2), np.float32), "stretch", ""))[:400], grey)
    hot = np.asarray(overlay(grey, np.ones((2, 2), np.float32), "stretch", "beagle  93.1 %")).astype(float)
    expected = 100 * (1 - 0.65) + 0.65 * 255 * np.array(colormaps["inferno"](1.0)[:3])
    assert np.allclose(hot[:400], expected, atol=1)
    strip = hot[400:]
    assert 30 <= len(strip) <= 40
    assert (strip == 255).mean() > 0.8
    # Letters
    assert (strip < 100).mean() > 0.01


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((30, 60), (160, 320)),
        ((3000, 2000), (1024, 683)),
        ((1, 5000), (1, 1024)),
        ((5000, 1), (1024, 320)),
        ((400, 500), (400, 500)),
    ],
)
def test_pictures_are_neither_tiny_nor_huge(size: tuple[int, int], shown: tuple[int, int]) -> None:
    picture = overlay(np.zeros((*size, 3), np.uint8), np.ones((2, 2), np.float32), "stretch", "beagle  50.0 %")
    assert picture.width == shown[1]
    assert 30 <= picture.height - shown[0] <= 60


def test_a_long_caption_shrinks_into_its_strip() -> None:
    grey = np.full((320, 320, 3), 100, np.uint8)
    strip = np.asarray(
        overlay(grey, np.zeros((2, 2), np.float32), "stretch", "American Staffordshire terrier of the hills  100.0 %")
    )[320:]
    columns = np.nonzero((strip < 128).any(axis=(0, 2)))[0]
    assert columns.min() >= 4
    assert 280 < columns.max() < 318


# --- files ----------------------------------------------------------------------------------------------------------------


def named(name: str, key: str | None = None) -> Named:
    return Named(name, key or f"/photos/{name}", lambda: PHOTOS[0])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("photos/a.jpg", "a"),
        ("../../etc/passwd", "passwd"),
        ("..", "photo"),
        ("photos/..jpg", "jpg"),
        ("...", "photo"),
        ("\\x1b[2J \\udcff.png", "_x1b_2J__udcff".strip("_")),
        ("Bärli 犬.webp", "Bärli_犬"),
        ("犬" * 300 + ".jpg", "犬" * 40),
        ("standard input", "standard_input"),
        ("a" * 255, "a" * 40),
    ],
)
def test_a_picture_lies_in_its_folder_whatever_the_photo_is_called(tmp_path: Path, name: str, stem: str) -> None:
    overlays = Overlays(tmp_path / "explained", "stretch")
    overlays.prepare()
    place = overlays.save(named(name), np.ones((2, 2), np.float32), "beagle  93.1 %")
    assert place.parent == tmp_path / "explained"
    assert place.resolve().parent == (tmp_path / "explained").resolve()
    assert place.name.rpartition("-")[0] == stem
    assert [entry.name for entry in (tmp_path / "explained").iterdir()] == [place.name]
    with Image.open(place) as picture:
        assert picture.format == "JPEG"
        assert picture.width == 320


def test_photos_of_one_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    overlays = Overlays(tmp_path, "stretch")
    keys = [f"/photos/{folder}/a.jpg" for folder in "abc"] + [
        "/photos/a/a.png",
        os.fsdecode(b"/photos/\xff.jpg"),
        "/photos/a/a.jpg",
    ]
    places = [overlays.place(named("a.jpg", key)) for key in keys]
    assert len(set(places)) == 5
    assert places[0] == places[-1]


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlays = Overlays(tmp_path, "stretch")
    place = overlays.save(named("a.jpg"), np.ones((2, 2), np.float32), "first")
    before = place.read_bytes()

    def cut(self: Image.Image, file: Path, *more: object, **named: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(
        UserError,
        match=(
            r"a-[0-9a-f]{10}\.jpg cannot be written \(No space left on device\)\. Overlays need a folder that can be"
            r" written\."
        ),
    ):
        overlays.save(named("a.jpg"), np.ones((2, 2), np.float32), "second")
    assert place.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [place.name]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/explained"):
        with pytest.raises(UserError) as refusal:
            Overlays(place, "stretch").prepare()
        assert str(refusal.value).startswith(f"{place} cannot be written (")
        assert str(refusal.value).endswith(
            "). Overlays need a folder that can be written. Type explain_dir=<folder>, for example."
        )


def test_a_photo_that_went_away_has_no_picture(tmp_path: Path) -> None:
    def gone() -> np.ndarray:
        raise Unreadable(
            "a.jpg cannot be opened (No such file or directory). Photos must be files. Mend it, or type"
            " data.on_corrupt=skip."
        )

    with pytest.raises(Unreadable):
        Overlays(tmp_path, "stretch").save(replace(named("a.jpg"), pixels=gone), np.ones((2, 2), np.float32), "x")
    assert list(tmp_path.iterdir()) == []
    # Bytes of a name, aside
    assert _NAME * 4 + len("-0123456789.jpg") + len(".") + len(".4194304") < 256
