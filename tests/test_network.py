import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.data import drawn_dogs
from dogbreeds.data.resize import resizer
from dogbreeds.models.assembly import assemble
from dogbreeds.models.head import MLP
from dogbreeds.models.model import Miniature, MobileNetV2
from dogbreeds.models.network import Network
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import All, Blocks, LastN, Nothing, Unfreeze

FROZEN = {"batchnorm": "frozen", "drop_connect": "off"}
NAMES = ("akita", "beagle", "collie")


def build(policy: Unfreeze, mode: str = "raw", classes: int = 3) -> Network:
    backbone = Miniature(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    head = MLP(widths=[8], dropout=0.5)
    return assemble(
        backbone,
        Preprocessing(mode=mode),
        policy.plan(backbone.blocks),
        lambda features: head.build(features, classes, 0),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def probabilities_as_in_training(network: Network, pixels: np.ndarray) -> np.ndarray:
    """Compute probabilities as training does: compiled prefix, then suffix and head."""
    inputs = network.prefix.compiled(pixels) if network.uses_cache else pixels
    return softmax(network.infer(inputs).numpy())


@pytest.mark.parametrize(
    ("policy", "mode"),
    [
        pytest.param(Nothing(**FROZEN), "torch", marks=pytest.mark.long),
        (LastN(layers=20, exact=False, **FROZEN), "caffe"),
        pytest.param(Nothing(**FROZEN), "raw", marks=pytest.mark.long),
        pytest.param(LastN(layers=20, exact=True, **FROZEN), "raw", marks=pytest.mark.long),
        pytest.param(All(**FROZEN), "raw", marks=pytest.mark.long),
        pytest.param(All(**FROZEN), "torch", marks=pytest.mark.slow),
    ],
)
def test_full_model_equals_prefix_suffix_and_head(policy: Unfreeze, mode: str) -> None:
    network = build(policy, mode)
    pixels = np.stack([drawn_dogs.draw("test", label, 0) for label in range(4)])
    full_model = network.full_model(NAMES, "stretch")
    before = [array.copy() for array in full_model.get_weights()]
    outputs = full_model(pixels)
    # A call without a `training` argument must change no weights.
    assert all(np.array_equal(a, b) for a, b in zip(before, full_model.get_weights(), strict=True))
    assert np.allclose(outputs["probabilities"], probabilities_as_in_training(network, pixels), atol=1e-5)
    assert [name.decode() for name in outputs["class"].numpy()] == [
        NAMES[index] for index in np.argmax(outputs["probabilities"], axis=1)
    ]


@pytest.mark.slow
def test_full_model_takes_images_of_any_size(rng: np.random.Generator) -> None:
    network = build(Nothing(**FROZEN))
    for how in ("stretch", "pad", "crop"):
        full_model = network.full_model(NAMES, how)
        for height, width in ((64, 64), (90, 41), (30, 200)):
            image = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
            expected = probabilities_as_in_training(network, resizer(64, how)(image)[None])
            assert np.allclose(full_model(image[None])["probabilities"], expected, atol=1e-5)


@pytest.mark.slow
def test_saved_full_model_loads_without_dogbreeds(tmp_path: Path) -> None:
    network = build(LastN(layers=20, exact=False, **FROZEN), "caffe")
    network.full_model(NAMES, "pad").save(tmp_path / "model.keras")
    image = drawn_dogs.draw("test", 1, 0)[:50]
    Image.fromarray(image).save(tmp_path / "image.png")
    script = (
        "import keras, numpy, sys; from PIL import Image\n"
        "model = keras.models.load_model('model.keras', safe_mode=True)\n"
        "outputs = model(numpy.asarray(Image.open('image.png'))[None])\n"
        "assert 'dogbreeds' not in sys.modules\n"
        "print(outputs['class'].numpy()[0].decode(), *outputs['probabilities'].numpy()[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    name, *probabilities = done.stdout.split()
    expected = probabilities_as_in_training(network, resizer(64, "pad")(image)[None])[0]
    assert name == NAMES[int(expected.argmax())]
    assert np.allclose([float(value) for value in probabilities], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("batchnorm", "kinds"),
    [
        ("frozen", {"kernel", "bias"}),
        ("affine", {"kernel", "bias", "gamma", "beta"}),
        ("trainable", {"kernel", "bias", "gamma", "beta"}),
    ],
)
def test_trainable_by_depth_follows_the_batchnorm_mode(batchnorm: str, kinds: set[str]) -> None:
    network = build(LastN(layers=20, exact=False, batchnorm=batchnorm, drop_connect="off"))
    groups = network.trainable_by_depth(network.plan.stages[-1])
    assert {variable.name for group in groups.values() for variable in group} == kinds
    assert sorted(groups) == [0, 1, 2]
    counts = network.parameter_counts()
    assert counts["total"] - counts["backbone"] == network.head.count_params()
    assert counts["trainable"] == sum(int(np.prod(variable.shape)) for group in groups.values() for variable in group)


def test_assemble_leaves_the_backbone_unchanged() -> None:
    backbone = Miniature(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    before = [array.copy() for array in backbone.network.get_weights()]
    network = build(Blocks(top=3, names=(), batchnorm="trainable", drop_connect="on"))
    for variable in network.variables:
        variable.assign(variable * 0 + 1)
    assert all(np.array_equal(a, b) for a, b in zip(before, backbone.network.get_weights(), strict=True))
    assert any(layer.rate > 0 for layer in backbone.network.layers if hasattr(layer, "rate"))


@pytest.mark.slow
def test_mobilenet_alpha_sets_the_number_of_parameters() -> None:
    small, wide = (
        MobileNetV2(architecture="MobileNetV2", image_size=64, pixels="tf", weights=None, alpha=alpha)
        .build(0)
        .network.count_params()
        for alpha in (0.35, 1.0)
    )
    assert (small, wide) == (410_208, 2_257_984)
