"""The zero-training baseline: what the backbone's own ImageNet classifier says of the photos.

ImageNet holds Stanford Dogs' photos: weights pretrained on it have seen the test photos too, with their breeds. What such weights get
without any training is what a result must be held against. A frozen attempt has the pooled features already, and the classifier is a matrix.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import Spec, text
from dogbreeds.data.class_names import is_numbered, outputs
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import _MEASURED, _SPLITS, ZeroShotBaseline
from dogbreeds.models.blocks import in_order
from dogbreeds.models.model import UNFIT, Backbone, MobileNetV2, Model, content, downloaded, load_all
from dogbreeds.models.network import Network, Prefix
from dogbreeds.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras

_NOT_ASKED, _NO_TOP, _NO_NUMBERS = (
    "not asked for",
    "the weights have no 1000-way top",
    "the classes have no ImageNet numbers",
)


def _dogs(class_names: Sequence[str]) -> int:
    return sum(output is not None for output in outputs(class_names))


@dataclass(frozen=True, kw_only=True)
class Baseline(Spec):
    """What the ways to a baseline share."""

    group = "baseline"

    def weights_file(self) -> Path | None:
        """The file that holds the top; None where no file is named.

        Raises:
            MissingFileError: where it is not there.
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
        """The baseline of an attempt that goes on from no other, yet to be measured.

        Returns:
            What is known of it, and the attempt's network with the weights' own top in place of its head; None where there is nothing to measure.

        Raises:
            MissingFileError, UserError: where a file of the top is not there, does not fit, or belongs to other weights.
        """
        return ZeroShotBaseline(_NOT_ASKED, _dogs(class_names)), None

    def inherit(
        self, said: str, measured: Mapping[str, float], sizes: Mapping[str, int], class_names: Sequence[str]
    ) -> ZeroShotBaseline:
        """The baseline of a fine-tune: that of its frozen attempt, which had the same backbone and photos.

        Args:
            said: how that attempt's run was tagged; empty where it recorded none.
            measured: its metrics.
            sizes: photos by split.
            class_names: of the data.
        """
        return ZeroShotBaseline(_NOT_ASKED, _dogs(class_names))


@dataclass(frozen=True, kw_only=True)
class Nothing(Baseline):
    """No baseline."""


@dataclass(frozen=True, kw_only=True)
class Top(Baseline):
    """The 1000-way classifier that belongs to the backbone's weights: of a file, or Keras' own where the backbone's weights are."""

    weights: str | None = text(example="path/to/file.weights.h5", optional=True)

    def weights_file(self) -> Path | None:
        if self.weights is None:
            return None
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise MissingFileError(
                f"baseline.weights={self.weights} is not a file. It must be a Keras weight file of the model with its"
                " 1000-way top, or null. Type baseline.weights=path/to/file.weights.h5, or baseline.weights=null."
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
        dogs, reason = _dogs(class_names), self._lacking(model, preprocessing, network, class_names)
        if reason:
            return ZeroShotBaseline(reason, dogs), None
        file = self.weights_file()
        try:
            top, stands_on = _opened(model, file)
        except MissingFileError:
            # what was asked for is the attempt: it can do without
            return ZeroShotBaseline("the weights with the 1000-way top could not be downloaded", dogs), None
        pooled = _before_pooling(backbone)
        if file is not None and stands_on != _content(backbone.network.input, pooled):
            raise UserError(
                f"baseline.weights={self.weights} holds other backbone weights than"
                f" model.weights={model.weights or 'null'}. A 1000-way top can be used on the very features that it was"
                " trained on. Type baseline.weights=<the file that these weights come from>, or null."
            )
        zero = replace(
            network, prefix=_prefix(network, backbone, preprocessing, pooled), head=_chosen(top, outputs(class_names))
        )
        return ZeroShotBaseline(f"{_MEASURED} {dogs} outputs", dogs), zero

    def _lacking(self, model: Model, preprocessing: Preprocessing, network: Network, class_names: Sequence[str]) -> str:
        """Why there is no baseline, as far as settings and names tell; empty where there may be one."""
        found = outputs(class_names)
        strangers = found.count(None)
        if strangers and not any(map(is_numbered, class_names)):
            return _NO_NUMBERS
        if strangers:
            return f"{strangers} of {len(found)} classes are none of ImageNet's dogs"
        if len(set(found)) < len(found):
            return "two classes have the same ImageNet number"
        if self.weights is None and model.weights != "imagenet":
            return _NO_TOP
        if network.suffix is not None:
            return "part of the backbone trains"
        return "" if preprocessing.mode == model.pixels else f"{preprocessing.mode} pixels are not the backbone's own"

    def inherit(
        self, said: str, measured: Mapping[str, float], sizes: Mapping[str, int], class_names: Sequence[str]
    ) -> ZeroShotBaseline:
        values = {split: measured.get(f"baseline/{split}_accuracy") for split in _SPLITS if split in sizes}
        accuracies = {
            split: Proportion(round(value * sizes[split]), sizes[split])
            for split, value in values.items()
            if value is not None
        }
        return ZeroShotBaseline(said or "its frozen attempt recorded none", _dogs(class_names), accuracies)


@functools.lru_cache(maxsize=1)
def _opened(model: Model, file: Path | None) -> "tuple[keras.Model, str]":
    """The top, [b, channels] -> [b, 1000] logits, and a digest of the weights below it; in one process, the same one is opened once."""
    import keras

    whole = downloaded(model, top=True) if file is None else _read(model, file)
    nodes = [node for node in in_order(whole) if node.input_tensors]
    # Others are within blocks
    *_, pool = [node for node in nodes if isinstance(node.operation, keras.layers.GlobalAveragePooling2D)]
    original = keras.Model(pool.output_tensors[0], whole.output)
    # So that the rest need not stay in memory
    top = keras.models.clone_model(original)
    top.set_weights(original.get_weights())
    return top, _content(whole.input, pool.input_tensors[0])


def _read(model: Model, file: Path) -> "keras.Model":
    whole = model.construct(None, top=True)
    try:
        load_all(whole, file)
    except UNFIT as error:
        width = f", alpha={model.alpha:g}" if isinstance(model, MobileNetV2) else ""
        raise UserError(
            f"baseline.weights={file} does not fit {model.architecture} with its top"
            f" ({' '.join(str(error).split())[:160]}). It must hold the weights of"
            f" keras.applications.{model.architecture}(include_top=True{width}), with 1000 outputs. Type"
            " baseline.weights=null, or the right file."
        ) from error
    return whole


def _content(begin: "keras.KerasTensor", end: "keras.KerasTensor") -> str:
    """A digest of the weights between two tensors."""
    import keras

    return content(keras.Model(begin, end).get_weights())


def _before_pooling(backbone: Backbone) -> "keras.KerasTensor":
    """What the top pools: the backbone's output, but where that is normalised (ConvNeXt), since its top normalises after pooling."""
    import keras

    last = in_order(backbone.network)[-1]
    return (
        last.input_tensors[0] if isinstance(last.operation, keras.layers.LayerNormalization) else last.output_tensors[0]
    )


def _prefix(network: Network, backbone: Backbone, preprocessing: Preprocessing, pooled: "keras.KerasTensor") -> Prefix:
    """The attempt's own frozen part, whose output is kept already, or where its top needs another, that one."""
    import keras

    if pooled is backbone.network.outputs[0]:
        return network.prefix
    pixels = keras.Input(backbone.network.input.shape[1:], name="pixels")
    # [b, h, w, channels]
    maps = keras.Model(backbone.network.input, pooled, name="unnormalised")(preprocessing.apply(pixels))
    features = keras.layers.GlobalAveragePooling2D(name="pool")(maps)
    return replace(
        network.prefix,
        graph=keras.Model(pixels, features, name="frozen"),
        fingerprint=f"{network.prefix.fingerprint}:unnormalised",
    )


def _chosen(top: "keras.Model", chosen: Sequence[int | None]) -> "keras.Model":
    """[b, channels] -> [b, classes]: of the 1000 logits those of the classes, in their order."""
    import keras

    return keras.Model(top.input, keras.ops.take(top.output, np.array(chosen, dtype=np.int32), axis=-1), name="head")
