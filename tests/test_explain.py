"""`grad_cam`: heat compared with the paper's definition, its position on the image, overlays and their files."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.data.image import UnreadableImageError
from dogbreeds.data.resize import resizer
from dogbreeds.inference.classifier import Classifier
from dogbreeds.inference.grad_cam import _MAX_STEM, OverlayWriter, draw_overlay, grad_cam, heat_on_image
from dogbreeds.inference.image_sources import NamedImage
from dogbreeds.models.assembly import assemble
from dogbreeds.models.head import MLP, Linear
from dogbreeds.models.model import Miniature
from dogbreeds.models.network import Network
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import All, LastN, Nothing, Unfreeze

FROZEN = {"batchnorm": "frozen", "drop_connect": "off"}
NAMES = ("akita", "beagle", "collie", "dingo")
IMAGES = np.stack([drawn_dogs.draw("test", label, 0) for label in range(5)])


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

    network.full_model(NAMES, resize).save(folder / "model.keras")
    return load(folder / "model.keras")


def by_definition(network: Network, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and Grad-CAM as the paper defines it: the gradient with respect to the maps, averaged over positions."""
    import keras
    import tensorflow as tf

    last = network.suffix or network.prefix.graph
    to_maps = keras.Model(last.input, last.get_layer("pool").input)
    inputs = tf.cast(pixels, tf.float32)
    if network.suffix is not None:
        inputs = network.prefix.graph(inputs, training=False)
    with tf.GradientTape() as tape:
        # [b, h, w, c]
        maps = to_maps(inputs, training=False)
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
def test_grad_cam_equals_its_definition(policy: Unfreeze, mode: str, tmp_path: Path) -> None:
    network = build(policy, mode=mode)
    classifier = saved(network, tmp_path)
    logits, heat = grad_cam(classifier)(IMAGES)
    expected_logits, expected = by_definition(network, IMAGES)
    assert heat.shape == expected.shape == (5, 2, 2)
    assert np.allclose(logits, expected_logits, atol=1e-4)
    assert np.allclose(logits, classifier.logits(IMAGES), atol=1e-4)
    assert np.allclose(heat, expected, atol=1e-3)
    assert heat.min() >= 0
    assert np.allclose(heat.max(axis=(1, 2)), 1)
    assert np.ptp(heat) > 0.5


@pytest.fixture(scope="module")
def one_channel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, np.ndarray]:
    """A network whose second logit is one channel of the feature maps, and that channel of `IMAGES`, [b, h, w]."""
    network = build(Nothing(**FROZEN), linear=True)
    classifier = saved(network, tmp_path_factory.mktemp("one_channel"))
    maps = classifier.maps_and_head[0](IMAGES.astype(np.float32)).numpy()
    # A channel whose mean is above 0 on all images.
    channel = int(maps.mean(axis=(1, 2)).min(axis=0).argmax())
    kernel, bias = classifier.maps_and_head[1].weights
    kernel.assign(np.zeros(kernel.shape))
    bias.assign(np.zeros(bias.shape))
    kernel.assign(np.where((np.arange(kernel.shape[0]) == channel)[:, None] & (np.arange(len(NAMES)) == 1), 3.0, 0.0))
    return classifier, maps[..., channel]


@pytest.mark.slow
def test_grad_cam_is_the_channel_that_alone_decides(one_channel: tuple[Classifier, np.ndarray]) -> None:
    classifier, channel = one_channel
    logits, heat = grad_cam(classifier)(IMAGES)
    assert logits.argmax(axis=1).tolist() == [1] * 5
    assert np.allclose(logits[:, 1], 3 * channel.mean(axis=(1, 2)), atol=1e-4)
    positive = np.maximum(channel, 0)
    assert np.allclose(heat, positive / positive.max(axis=(1, 2), keepdims=True), atol=1e-4)


@pytest.mark.slow
def test_grad_cam_is_zero_if_no_position_raises_the_logit(one_channel: tuple[Classifier, np.ndarray]) -> None:
    classifier, _ = one_channel
    kernel, bias = classifier.maps_and_head[1].weights
    before = kernel.numpy()
    try:
        kernel.assign(np.zeros(kernel.shape))
        bias.assign([0.0, 0.0, 5.0, 0.0])
        logits, heat = grad_cam(classifier)(IMAGES)
    finally:
        kernel.assign(before)
        bias.assign(np.zeros(bias.shape))
    assert logits.argmax(axis=1).tolist() == [2] * 5
    assert not heat.any()


# --- heat on the image ------------------------------------------------


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(300, 120), (120, 300), (201, 200), (64, 64)])
def test_heat_on_image_lies_where_the_network_saw_it(resize: str, height: int, width: int) -> None:
    """A bright square is drawn, the image resized as the network does, and the result taken for heat."""
    top, left, side = height // 2 - 20, width // 2 - 10, 30
    image = np.zeros((height, width, 3), np.uint8)
    image[top : top + side, left : left + side] = 255
    small = resizer(32, resize)(image)[..., 0].astype(np.float32) / 255
    if resize == "pad":
        # The grey padding is not heat.
        small[small == np.float32(128 / 255)] = 0
    heat = heat_on_image(small, height, width, resize)
    assert heat.shape == (height, width)
    assert heat.min() >= 0
    assert heat.max() <= 1
    rows, columns = np.nonzero(heat > 0.6)
    # About 0.7 pixels of the small image.
    tolerance = 0.7 * max(height, width) / 32 + 2
    for measured, expected in (
        (rows.min(), top),
        (rows.max(), top + side - 1),
        (columns.min(), left),
        (columns.max(), left + side - 1),
    ):
        assert abs(measured - expected) <= tolerance


def test_heat_on_image_is_zero_where_cropped_and_leaves_out_padding() -> None:
    hot = np.ones((4, 4), np.float32)
    cropped = heat_on_image(hot, 10, 30, "crop")
    assert (cropped[:, 10:20] == 1).all()
    assert not cropped[:, :10].any()
    assert not cropped[:, 20:].any()
    top_only = np.zeros((4, 4), np.float32)
    # The top of the square is padding of a wide image.
    top_only[0] = 1
    assert not heat_on_image(top_only, 10, 40, "pad").any()
    assert (heat_on_image(hot, 10, 40, "pad") == 1).all()


def test_draw_overlay_blends_heat_by_its_strength_and_puts_the_caption_below() -> None:
    from matplotlib import colormaps

    grey = np.full((400, 400, 3), 100, np.uint8)
    assert np.array_equal(np.asarray(draw_overlay(grey, np.zeros((2, 2), np.float32), "stretch", ""))[:400], grey)
    hot = np.asarray(draw_overlay(grey, np.ones((2, 2), np.float32), "stretch", "beagle  93.1 %")).astype(float)
    expected = 100 * (1 - 0.65) + 0.65 * 255 * np.array(colormaps["inferno"](1.0)[:3])
    assert np.allclose(hot[:400], expected, atol=1)
    strip = hot[400:]
    assert 30 <= len(strip) <= 40
    assert (strip == 255).mean() > 0.8
    # The letters of the caption are dark.
    assert (strip < 100).mean() > 0.01


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((30, 60), (160, 320)),
        ((3000, 2000), (1024, 683)),
        ((1, 5000), (1, 1024)),
        ((5000, 1), (1024, 320)),
        ((400, 500), (400, 500)),
    ],
)
def test_draw_overlay_bounds_the_size_of_the_picture(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    picture = draw_overlay(np.zeros((*size, 3), np.uint8), np.ones((2, 2), np.float32), "stretch", "beagle  50.0 %")
    assert picture.width == drawn[1]
    assert 30 <= picture.height - drawn[0] <= 60


def test_draw_overlay_shrinks_a_long_caption_to_the_width() -> None:
    grey = np.full((320, 320, 3), 100, np.uint8)
    strip = np.asarray(
        draw_overlay(
            grey, np.zeros((2, 2), np.float32), "stretch", "American Staffordshire terrier of the hills  100.0 %"
        )
    )[320:]
    columns = np.nonzero((strip < 128).any(axis=(0, 2)))[0]
    assert columns.min() >= 4
    assert 280 < columns.max() < 318


# --- files ------------------------------------------------------------


def named(name: str, key: str | None = None) -> NamedImage:
    return NamedImage(name, key or f"/photos/{name}", lambda: IMAGES[0])


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
def test_overlay_writer_writes_into_its_folder_whatever_the_image_is_called(
    tmp_path: Path, name: str, stem: str
) -> None:
    overlays = OverlayWriter(tmp_path / "explained", "stretch")
    overlays.prepare()
    path = overlays.save(named(name), np.ones((2, 2), np.float32), "beagle  93.1 %")
    assert path.parent == tmp_path / "explained"
    assert path.resolve().parent == (tmp_path / "explained").resolve()
    assert path.name.rpartition("-")[0] == stem
    assert [entry.name for entry in (tmp_path / "explained").iterdir()] == [path.name]
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.width == 320


def test_overlay_writer_gives_images_of_one_name_different_paths(tmp_path: Path) -> None:
    overlays = OverlayWriter(tmp_path, "stretch")
    keys = [f"/photos/{folder}/a.jpg" for folder in "abc"] + [
        "/photos/a/a.png",
        os.fsdecode(b"/photos/\xff.jpg"),
        "/photos/a/a.jpg",
    ]
    paths = [overlays.path(named("a.jpg", key)) for key in keys]
    assert len(set(paths)) == 5
    assert paths[0] == paths[-1]


def test_overlay_writer_leaves_nothing_half_written_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlays = OverlayWriter(tmp_path, "stretch")
    path = overlays.save(named("a.jpg"), np.ones((2, 2), np.float32), "first")
    before = path.read_bytes()

    def save_half(self: Image.Image, file: Path, *more: object, **named: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(
        UserError,
        match=(
            r"a-[0-9a-f]{10}\.jpg cannot be written \(No space left on device\)\. explain_dir .*\."
            r" Type explain_dir=<folder>, for example\.$"
        ),
    ):
        overlays.save(named("a.jpg"), np.ones((2, 2), np.float32), "second")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_overlay_writer_refuses_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/explained"):
        with pytest.raises(UserError) as error:
            OverlayWriter(path, "stretch").prepare()
        assert str(error.value).startswith(f"{path} cannot be written (")
        assert str(error.value).endswith("writable folder. Type explain_dir=<folder>, for example.")


def test_overlay_writer_writes_nothing_for_an_image_that_was_deleted(tmp_path: Path) -> None:
    def gone() -> np.ndarray:
        raise UnreadableImageError(
            "a.jpg cannot be opened (No such file or directory). Photos must be files. Mend it, or type"
            " data.on_corrupt=skip."
        )

    with pytest.raises(UnreadableImageError):
        OverlayWriter(tmp_path, "stretch").save(replace(named("a.jpg"), pixels=gone), np.ones((2, 2), np.float32), "x")
    assert list(tmp_path.iterdir()) == []
    # A file name has at most 255 bytes, that of the temporary file too.
    assert _MAX_STEM * 4 + len("-0123456789.jpg") + len(".") + len(".4194304") < 256
