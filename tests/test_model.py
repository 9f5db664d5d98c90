from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.models.blocks import find_blocks
from dogbreeds.models.model import SHIPPED_WEIGHTS, Miniature, MobileNetV2, Model


def model(architecture: str, size: int = 64, weights: str | None = None, **more: object) -> Model:
    kinds = {"Miniature": Miniature, "MobileNetV2": MobileNetV2}
    alpha = {"alpha": 0.35} if architecture == "MobileNetV2" else {}
    settings = {"architecture": architecture, "image_size": size, "pixels": "raw", "weights": weights, **alpha}
    settings |= more
    return kinds.get(architecture, Model)(**settings)


@pytest.mark.parametrize(
    ("architecture", "layers", "count", "first", "last"),
    [
        ("EfficientNetB0", 237, 18, ["stem 6", "block1a 10", "block2a 14"], ["block6d 15", "block7a 13", "top 3"]),
        ("MobileNetV2", 154, 19, ["stem 3", "expanded_conv 5", "block_1 9"], ["block_15 9", "block_16 8", "top 3"]),
        (
            "ConvNeXtTiny",
            133,
            23,
            ["stem 2", "stage_0_block_0 7"],
            ["downsampling_block_2 1", "stage_3_block_0 7", "stage_3_block_1 7"],
        ),
        ("Miniature", 192, 15, ["stem 6", "block1a 10"], ["block6c 15", "block7a 13", "top 3"]),
        pytest.param(
            "EfficientNetB4",
            474,
            34,
            ["stem 6", "block1a 10", "block1b 12"],
            ["block6h 15", "block7a 13", "block7b 15", "top 3"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "EfficientNetV2B0",
            270,
            23,
            ["stem 5", "block1a 3", "block2a 5"],
            ["block6g 15", "block6h 15", "top 3"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ResNet50",
            175,
            17,
            ["stem 6", "conv2_block1 12"],
            ["conv5_block1 12", "conv5_block2 10", "conv5_block3 10"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_find_blocks_uses_the_names_of_the_architecture_and_covers_every_layer(
    architecture: str, layers: int, count: int, first: list[str], last: list[str]
) -> None:
    network = model(architecture).construct(None)
    assert len(network.layers) == layers
    blocks = find_blocks(network)
    sizes = [f"{block.name} {len(block.layers)}" for block in blocks]
    assert len(blocks) == count
    assert sizes[: len(first)] == first
    assert sizes[-len(last) :] == last if architecture != "ConvNeXtTiny" else sizes[-5:-2] == last
    in_blocks = [layer.name for block in blocks for layer in block.layers]
    # The input layer belongs to no block.
    assert sorted(in_blocks) == sorted(layer.name for layer in network.layers[1:])
    assert blocks[-1].output is network.outputs[0]


@pytest.mark.parametrize(
    ("option", "count", "first", "last"),
    [
        (
            "mobilenetv3_small",
            13,
            ["stem 4", "expanded_conv 12", "expanded_conv_1 9"],
            ["expanded_conv_10 15", "top 3"],
        ),
        pytest.param("mobilenet", 14, ["stem 3", "conv_1 7"], ["conv_13 6"], marks=pytest.mark.slow),
        # By its graph: its names tell nothing.
        pytest.param("inceptionv3", 11, ["block1 40", "block2 23"], ["block11 31"], marks=pytest.mark.slow),
        pytest.param("inception_resnetv2", 44, ["block1 40", "block2 21"], ["top 3"], marks=pytest.mark.long),
        pytest.param("xception", 14, ["block1 6", "block2 9"], ["block14 6"], marks=pytest.mark.long),
        pytest.param("densenet121", 60, ["stem 6", "conv2_block1 7"], ["top 2"], marks=pytest.mark.long),
        pytest.param("resnet50v2", 18, ["stem 4", "conv2_block1 12"], ["top 2"], marks=pytest.mark.long),
        pytest.param("nasnet_mobile", 2, ["block1 767"], ["top 1"], marks=pytest.mark.long),
        pytest.param("vgg16", 5, ["block1 3", "block2 3"], ["block5 4"], marks=pytest.mark.long),
        pytest.param("effnetv2b1", 29, ["stem 5", "block1a 3"], ["top 3"], marks=pytest.mark.long),
    ],
)
def test_a_config_says_where_a_backbone_can_be_cut(
    composed, option: str, count: int, first: list[str], last: list[str], rng: np.random.Generator
) -> None:
    import keras

    size = {"inceptionv3": 75, "inception_resnetv2": 75, "xception": 71}.get(option, 64)
    run = composed(f"model={option}", "model.weights=null", f"model.image_size={size}", "data=miniature")
    network = run.model.construct(None)
    blocks = find_blocks(network, run.model.blocks)
    sizes = [f"{block.name} {len(block.layers)}" for block in blocks]
    assert (len(blocks), sizes[: len(first)], sizes[-len(last) :]) == (count, first, last)
    assert sum(len(block.layers) for block in blocks) == len(network.layers) - 1
    images = rng.uniform(-1, 1, size=(2, size, size, 3)).astype(np.float32)
    middle = blocks[len(blocks) // 2 - 1].output
    below, above = keras.Model(network.input, middle), keras.Model(middle, network.output)
    assert np.allclose(above(below(images, training=False), training=False), network(images, training=False), atol=1e-5)


def test_blocks_of_a_network_without_names_end_where_branches_merge() -> None:
    import keras

    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Conv2D(4, 1)(inputs)
    for _ in range(2):
        branch = keras.layers.ReLU()(keras.layers.Conv2D(4, 1)(outputs))
        outputs = keras.layers.add([outputs, keras.layers.multiply([branch, branch]), branch])
    network = keras.Model(inputs, keras.layers.ReLU()(outputs))
    assert [(block.name, len(block.layers)) for block in find_blocks(network)] == [
        ("block1", 5),
        ("block2", 4),
        ("top", 1),
    ]
    # A pattern that no layer has: one block, with all of its layers.
    assert [(block.name, len(block.layers)) for block in find_blocks(network, "nothing")] == [("top", 10)]
    line = keras.Sequential(
        [keras.Input((8, 8, 3)), *(keras.layers.Conv2D(2, 1) for _ in range(3)), keras.layers.ReLU()]
    )
    functional = keras.Model(line.inputs, line.outputs)
    assert [len(block.layers) for block in find_blocks(functional)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"architecture": "ResNet51"},
            r"^model\.architecture was 'ResNet51'\. .* such as ResNet50, .*\. Type model\.architecture=ResNet50, ",
        ),
        ({"architecture": "imagenet_utils"}, r"^model\.architecture was 'imagenet_utils'\. "),
        (
            {"architecture": "MobileNet", "arguments": {"foo": 1}},
            r"^model\.arguments was {'foo': 1} \(.*foo.*\)\. .* keras\.applications\.MobileNet .* Type ",
        ),
        ({"architecture": "MobileNet", "arguments": {"weights": "x"}}, r"^model\.arguments was {'weights': 'x'} "),
    ],
)
def test_wrong_builders_and_arguments_raise_a_user_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model(**settings).construct(None)


@pytest.mark.parametrize("arguments", [[1], {"a": [1]}, {"a b": 1}, "alpha", 3])
def test_arguments_are_names_with_plain_values(arguments: object) -> None:
    with pytest.raises(
        UserError, match=r"^model\.arguments was .*\. It must be names .*\. Type 'model\.arguments={alpha:"
    ):
        model("MobileNet", arguments=arguments)


def test_arguments_and_blocks_are_part_of_a_backbone_s_identity() -> None:
    plain, other, cut = (
        model("MobileNet", **more).build(0).fingerprint
        for more in ({}, {"arguments": {"alpha": 1.0}}, {"blocks": "conv_pw"})
    )
    assert len({plain, other, cut}) == 3
    assert plain.count(":") == 1


@pytest.mark.parametrize(
    "architecture",
    [
        "MobileNetV2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("EfficientNetB0", "ResNet50", "ConvNeXtTiny")),
    ],
)
def test_the_network_below_and_above_a_cut_equals_the_whole_network(
    architecture: str, rng: np.random.Generator
) -> None:
    import keras

    network = model(architecture).construct(None)
    images = rng.uniform(0, 255, size=(2, 64, 64, 3)).astype(np.float32)
    expected = np.asarray(network(images, training=False))
    blocks = find_blocks(network)
    for block in blocks[:-1:4]:
        below = keras.Model(network.input, block.output)
        above = keras.Model(block.output, network.output)
        outputs = np.asarray(above(below(images, training=False), training=False))
        assert np.allclose(outputs, expected, atol=1e-5)


def test_shipped_weights_are_small_and_load() -> None:
    assert SHIPPED_WEIGHTS.stat().st_size < 4_000_000
    built = model("Miniature", weights="shipped").build(0)
    # The seed affects random weights only.
    assert model("Miniature", weights="shipped").build(1) is built
    assert built.network.count_params() == 847_529
    kernel = built.network.get_layer("top_conv").kernel
    assert kernel.dtype == "float32"
    assert np.array_equal(np.asarray(kernel), np.asarray(kernel).astype(np.float16))


@pytest.mark.slow
def test_random_weights_depend_on_the_seed() -> None:
    first, again, other = (model("MobileNetV2").build(seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other


def official_file(tmp_path: Path, name: str) -> Path:
    """Write a file as Keras publishes it: legacy HDF5, with the standard deviation in place of the variance."""
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(5)
    network = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 64, 3))
    normalization = next(layer for layer in network.layers if isinstance(layer, keras.layers.Normalization))
    normalization.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    import h5py

    with h5py.File(tmp_path / name, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return tmp_path / name


@pytest.mark.slow
def test_official_weight_file_by_path_equals_imagenet_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    from keras.src.utils import file_utils

    file = official_file(tmp_path, "efficientnetb0_notop.h5")
    # Replaces the download.
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(file))
    by_name = model("EfficientNetB0", weights="imagenet").build(0)
    by_path = model("EfficientNetB0", weights=str(file)).build(0)
    images = rng.uniform(0, 255, size=(2, 64, 64, 3)).astype(np.float32)
    assert np.array_equal(
        np.asarray(by_name.network(images, training=False)), np.asarray(by_path.network(images, training=False))
    )
    assert by_name.fingerprint == by_path.fingerprint
    assert [block.name for block in by_name.blocks] == [block.name for block in by_path.blocks]


@pytest.mark.slow
def test_custom_weight_file_by_path_equals_what_keras_loads(tmp_path: Path, rng: np.random.Generator) -> None:
    import keras

    keras.utils.set_random_seed(6)
    network = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 64, 3))
    network.save_weights(tmp_path / "mine.weights.h5")
    images = rng.uniform(0, 255, size=(2, 64, 64, 3)).astype(np.float32)
    loaded = model("EfficientNetB0", weights=str(tmp_path / "mine.weights.h5")).build(0).network
    assert np.array_equal(np.asarray(loaded(images, training=False)), np.asarray(network(images, training=False)))


@pytest.mark.slow
def test_weights_of_another_network_raise_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"miniature\.weights\.h5 does not fit EfficientNetB0 \(.*It must hold the weights of"
            r" keras\.applications\.EfficientNet"
        ),
    ):
        model("EfficientNetB0", weights=str(SHIPPED_WEIGHTS)).build(0)
    half = model("MobileNetV2", alpha=0.5).construct(None)
    half.save_weights(tmp_path / "half.weights.h5")
    with pytest.raises(
        UserError,
        match=(
            r"in the same size, with alpha=0\.35\. Type model\.weights=imagenet, or give the right file or"
            r" model\.alpha\."
        ),
    ):
        model("MobileNetV2", weights=str(tmp_path / "half.weights.h5")).build(0)
    (tmp_path / "text.weights.h5").write_text("not HDF5")
    with pytest.raises(UserError, match=r"text\.weights\.h5 does not fit Miniature"):
        model("Miniature", weights=str(tmp_path / "text.weights.h5")).build(0)


def test_imagenet_weights_without_a_network_connection_raise_an_error_with_the_offline_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from keras.src.utils import file_utils

    def unreachable(*_: object, **__: object) -> None:
        raise Exception(
            "URL fetch failure on https://storage.googleapis.com/x: None -- [Errno -2] Name or service not known"
        )

    monkeypatch.setattr(file_utils, "get_file", unreachable)
    with pytest.raises(MissingFileError) as error:
        model("EfficientNetB0", weights="imagenet").build(0)
    assert "The ImageNet weights of EfficientNetB0 are not in " in str(error.value)
    assert "could not be downloaded (URL fetch failure on https://" in str(error.value)
    assert "Type model.weights=path/to/file.h5, or model=miniature, which needs no download." in str(error.value)


def test_the_miniature_has_one_architecture() -> None:
    with pytest.raises(UserError, match=r"^model\.architecture was 'ResNet50'\. .*Miniature"):
        Miniature(architecture="ResNet50", image_size=64, pixels="raw", weights="shipped")


def test_imagenet_weights_of_the_miniature_raise_a_user_error() -> None:
    with pytest.raises(
        UserError, match=r"^model\.weights=imagenet .* model=miniature\. .* Type model\.weights=shipped\.$"
    ):
        model("Miniature", weights="imagenet").build(0)


def test_images_smaller_than_the_backbone_takes_say_the_smallest_size(composed) -> None:
    run = composed("model=inceptionv3", "data=miniature", "model.weights=null", "model.image_size=64")
    with pytest.raises(UserError, match=r"model\.image_size was 64\. InceptionV3 .* Type model\.image_size=75"):
        run.model.build(0)
