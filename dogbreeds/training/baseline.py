"""Zero-shot baseline: the accuracy of the backbone's own ImageNet classifier, without any training.

ImageNet contains the images of Stanford Dogs, so weights pretrained on it have seen the test images with their labels.
A result must be compared with what such weights reach untrained. A run with a frozen backbone has the pooled features
already, so the baseline costs one matrix product.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import Spec, path
from dogbreeds.core.text import shorten
from dogbreeds.data.class_names import has_wordnet_id, imagenet_outputs
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import MEASURED_BASELINE_PREFIX, SPLIT_NAMES, ZeroShotBaseline
from dogbreeds.models.assembly import build_prefix
from dogbreeds.models.blocks import nodes_in_order
from dogbreeds.models.model import (
    WEIGHT_FILE_ERRORS,
    Backbone,
    MobileNetV2,
    Model,
    arrays_digest,
    imagenet_network,
    load_all_weights,
    network_name,
)
from dogbreeds.models.network import Network, Prefix
from dogbreeds.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras

# Classes of ImageNet.
_NUM_OUTPUTS = 1000
# Reasons for no baseline, as the run is tagged.
_NOT_REQUESTED = "not requested"
_NO_TOP = "the weights have no 1000-way top"
_NO_WORDNET_IDS = "the class names have no WordNet IDs"


def _count_dogs(class_names: Sequence[str]) -> int:
    """Count the classes that are among ImageNet's dogs."""
    return sum(output is not None for output in imagenet_outputs(class_names))


@dataclass(frozen=True, kw_only=True)
class Baseline(Spec):
    """Base class of baselines; it measures nothing."""

    group = "baseline"

    def weights_file(self) -> Path | None:
        """Return the weight file with the 1000-way top; None if no file is named.

        Raises:
            MissingFileError: if the named file does not exist.
        """
        return None

    def build(
        self,
        model: Model,
        backbone: Backbone,
        preprocessing: Preprocessing,
        network: Network,
        class_names: Sequence[str],
    ) -> tuple[ZeroShotBaseline, Network | None]:
        """Build the baseline of a run without a parent, to be measured later.

        Args:
            model: spec of the backbone.
            backbone: the backbone that it built.
            preprocessing: the run's pixel convention.
            network: the run's network, whose prefix is shared.
            class_names: in the order of the labels.

        Returns:
            The baseline without accuracies, and the network to measure: the run's own with the weights' 1000-way top in
            place of its head. The network is None if there is nothing to measure; the baseline then holds the reason.

        Raises:
            MissingFileError: if the weight file of the top does not exist.
            UserError: if it does not fit the model, or belongs to other backbone weights.
        """
        return ZeroShotBaseline(_NOT_REQUESTED, _count_dogs(class_names)), None

    def inherit(
        self, description: str, measured: Mapping[str, float], sizes: Mapping[str, int], class_names: Sequence[str]
    ) -> ZeroShotBaseline:
        """Return the baseline of a fine-tune: that of its parent, which had the same backbone and images.

        Args:
            description: the parent's `baseline` tag; empty if it recorded none.
            measured: the parent's metrics, by name.
            sizes: number of images, by split.
            class_names: in the order of the labels.
        """
        return ZeroShotBaseline(_NOT_REQUESTED, _count_dogs(class_names))


@dataclass(frozen=True, kw_only=True)
class Nothing(Baseline):
    """No baseline."""


@dataclass(frozen=True, kw_only=True)
class Top(Baseline):
    """The 1000-way ImageNet classifier of the backbone's weights.

    Attributes:
        weights: Keras weight file of the model with its top; None for that of `model.weights=imagenet`.
    """

    weights: str | None = path(example="path/to/file.weights.h5", optional=True)

    def weights_file(self) -> Path | None:
        if self.weights is None:
            return None
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise MissingFileError(
                f"baseline.weights={self.weights} is not a file. It must be a Keras weight file of the model with its"
                " 1000-way top, or null. Set baseline.weights=path/to/file.weights.h5, or baseline.weights=null."
            )
        return path

    def build(
        self,
        model: Model,
        backbone: Backbone,
        preprocessing: Preprocessing,
        network: Network,
        class_names: Sequence[str],
    ) -> tuple[ZeroShotBaseline, Network | None]:
        dogs = _count_dogs(class_names)
        reason = self._reason_for_none(model, preprocessing, network, class_names)
        if reason:
            return ZeroShotBaseline(reason, dogs), None
        file = self.weights_file()
        try:
            top, top_digest = _load_top(model, file)
        except MissingFileError:
            # The run can do without its baseline.
            return ZeroShotBaseline("the weights with the 1000-way top could not be downloaded", dogs), None
        maps = _maps_to_pool(backbone)
        if file is not None and top_digest != _weights_digest(backbone.network.input, maps):
            raise UserError(
                f"baseline.weights={self.weights} holds other backbone weights than"
                f" model.weights={model.weights or 'null'}. A 1000-way top is valid only for the features that it was"
                " trained on. Set baseline.weights=<the file that these weights come from>, or baseline.weights=null."
            )
        zero_shot = replace(
            network,
            prefix=_prefix(network, backbone, preprocessing, maps),
            head=_select_outputs(top, imagenet_outputs(class_names)),
        )
        return ZeroShotBaseline(f"{MEASURED_BASELINE_PREFIX} {dogs} outputs", dogs), zero_shot

    def _reason_for_none(
        self, model: Model, preprocessing: Preprocessing, network: Network, class_names: Sequence[str]
    ) -> str:
        """Return why settings or class names rule out a baseline; empty if they do not."""
        found = imagenet_outputs(class_names)
        others = found.count(None)
        if others and not any(map(has_wordnet_id, class_names)):
            return _NO_WORDNET_IDS
        if others:
            return f"{others} of {len(found)} classes are not among ImageNet's dogs"
        if len(set(found)) < len(found):
            return "two classes have the same WordNet ID"
        if self.weights is None and model.weights != "imagenet":
            return _NO_TOP
        if network.suffix is not None:
            return "part of the backbone trains"
        if preprocessing.mode != model.pixels:
            return f"{preprocessing.mode} pixels are not those of pretraining"
        return ""

    def inherit(
        self, description: str, measured: Mapping[str, float], sizes: Mapping[str, int], class_names: Sequence[str]
    ) -> ZeroShotBaseline:
        values = {split: measured.get(f"baseline/{split}_accuracy") for split in SPLIT_NAMES if split in sizes}
        accuracies = {
            split: Proportion(round(value * sizes[split]), sizes[split])
            for split, value in values.items()
            if value is not None
        }
        return ZeroShotBaseline(description or "the parent run recorded none", _count_dogs(class_names), accuracies)


@functools.lru_cache(maxsize=1)
def _load_top(model: Model, file: Path | None) -> "tuple[keras.Model, str]":
    """Return the top, [b, channels] -> [b, 1000] logits, and a digest of the weights below it.

    The jobs of a sweep share a process and load the top once.
    """
    import keras

    full_model = imagenet_network(model, top=True) if file is None else _read_full_model(model, file)
    nodes = [node for node in nodes_in_order(full_model) if node.input_tensors]
    # The last pooling layer: others are within blocks.
    pools = [node for node in nodes if isinstance(node.operation, keras.layers.GlobalAveragePooling2D)]
    if not pools or full_model.output.shape[1:] != (_NUM_OUTPUTS,):
        raise UserError(
            f"{model.architecture} with its top has {len(pools)} layers GlobalAveragePooling2D, and the output shape"
            f" {tuple(full_model.output.shape[1:])}. The zero-shot baseline needs a top that pools the feature maps and"
            f" ends in the {_NUM_OUTPUTS} logits of ImageNet. Set baseline=none, or correct the model's construct."
        )
    pool = pools[-1]
    original = keras.Model(pool.output_tensors[0], full_model.output)
    # A copy, so that the full model does not stay in memory.
    top = keras.models.clone_model(original)
    top.set_weights(original.get_weights())
    return top, _weights_digest(full_model.input, pool.input_tensors[0])


def _read_full_model(model: Model, file: Path) -> "keras.Model":
    """Build the model with its top, and load all of its weights from a file."""
    full_model = model.construct(None, top=True)
    try:
        load_all_weights(full_model, file)
    except WEIGHT_FILE_ERRORS as error:
        width = f" and alpha={model.alpha:g}" if isinstance(model, MobileNetV2) else ""
        raise UserError(
            f"baseline.weights={file} does not fit {model.architecture} with its top"
            f" ({shorten(str(error), 160)}). It must hold the weights of"
            f" {network_name(model, top=True)}, with 1000 outputs{width}. Set"
            " baseline.weights=<the right file>, or baseline.weights=null."
        ) from error
    return full_model


def _weights_digest(begin: "keras.KerasTensor", end: "keras.KerasTensor") -> str:
    """Hash the weights between two tensors."""
    import keras

    return arrays_digest(keras.Model(begin, end).get_weights())


def _maps_to_pool(backbone: Backbone) -> "keras.KerasTensor":
    """Return the feature maps that the top pools.

    They are the backbone's output, except if its last layer normalises (ConvNeXt): the top normalises after pooling.
    """
    import keras

    last = nodes_in_order(backbone.network)[-1]
    return (
        last.input_tensors[0] if isinstance(last.operation, keras.layers.LayerNormalization) else last.output_tensors[0]
    )


def _prefix(network: Network, backbone: Backbone, preprocessing: Preprocessing, maps: "keras.KerasTensor") -> Prefix:
    """Return the run's own frozen part, whose features are cached already, or one that ends at other feature maps."""
    import keras

    if maps is backbone.network.outputs[0] and not network.depths:
        return network.prefix
    plain = build_prefix(backbone, preprocessing, len(backbone.blocks), network.prefix.devices)
    plain = replace(plain, runtime=network.prefix.runtime, precision=network.prefix.precision)
    if maps is backbone.network.outputs[0]:
        return plain
    pixels = keras.Input(backbone.network.input.shape[1:], name="pixels")
    # [b, h, w, channels]
    outputs = keras.Model(backbone.network.input, maps, name="unnormalised")(preprocessing.apply(pixels))
    features = keras.layers.GlobalAveragePooling2D(name="pool")(outputs)
    return replace(
        plain,
        graph=keras.Model(pixels, features, name="frozen"),
        fingerprint=f"{plain.fingerprint}:unnormalised",
    )


def _select_outputs(top: "keras.Model", outputs: Sequence[int | None]) -> "keras.Model":
    """Reduce the 1000 logits to those of the classes, in their order: [b, channels] -> [b, classes]."""
    import keras

    return keras.Model(top.input, keras.ops.take(top.output, np.array(outputs, dtype=np.int32), axis=-1), name="head")
