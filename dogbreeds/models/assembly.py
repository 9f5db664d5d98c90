"""Assembly of a network: where a backbone is cut, and copies of its parts for what trains."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.models.custom_layers import clone_at, silence_dropout
from dogbreeds.models.depths import concatenate
from dogbreeds.models.network import ONE_DEVICE, Network, Prefix
from dogbreeds.models.pooling import pool
from dogbreeds.models.replicas import OneDevice

if TYPE_CHECKING:
    import keras

    from dogbreeds.models.model import Backbone
    from dogbreeds.models.preprocessing import Preprocessing
    from dogbreeds.models.unfreeze import Plan


def assemble(
    backbone: "Backbone",
    preprocessing: "Preprocessing",
    plan: "Plan",
    build_head: "Callable[[int], keras.Sequential]",
    replicas: OneDevice = ONE_DEVICE,
    prefix: Prefix | None = None,
    depths: tuple[int, ...] = (),
    train_size: int | None = None,
) -> Network:
    """Cut a backbone as planned and add a head.

    Args:
        backbone: is not modified. The suffix gets copies of its weights.
        preprocessing: applied to images before the backbone.
        plan: where to cut, and what trains.
        build_head: builds the head for a number of features.
        replicas: the devices to train on.
        prefix: frozen part of another network with the same cut, preprocessing and depths, to share; None builds one.
        depths: as of `Network`; none of them is below the cut, unless nothing of the backbone is above it.
        train_size: pixels a side of the images to train on; None for those of the backbone.

    Raises:
        UserError: if the backbone takes images of one size alone.
    """
    prefix = prefix or build_prefix(backbone, preprocessing, plan.cut, replicas.devices, depths)
    is_resized = train_size not in (None, backbone.network.input.shape[1])
    resized = _resized(prefix, int(train_size or 0)) if is_resized else None
    with replicas.scope():
        suffix = _suffix(backbone, plan, depths, is_resized) if plan.cut < len(backbone.blocks) else None
        num_features = (suffix or prefix.graph).output.shape[-1]
        return Network(prefix, suffix, build_head(num_features), plan, replicas, depths, resized)


def build_prefix(
    backbone: "Backbone",
    preprocessing: "Preprocessing",
    cut: int,
    devices: tuple[str | None, ...],
    depths: tuple[int, ...] = (),
) -> Prefix:
    """Build the frozen part of a network: as of `assemble`, for a cut above so many blocks."""
    import keras

    pixels = keras.Input(backbone.network.input.shape[1:], name="pixels")
    outputs = preprocessing.apply(pixels)
    name = f"{backbone.fingerprint}:{preprocessing.fingerprint}:{cut}"
    if cut == 0:
        outputs = keras.layers.Identity(name="photos")(outputs)
    elif cut == len(backbone.blocks) and depths:
        outputs = keras.Model(backbone.network.input, _features(backbone, depths), name="prefix")(outputs)
        name += f":depths={','.join(map(str, depths))}"
    else:
        outputs = keras.Model(backbone.network.input, backbone.blocks[cut - 1].output, name="prefix")(outputs)
        if cut == len(backbone.blocks):
            outputs = pool(outputs, backbone.pooling)
    return Prefix(keras.Model(pixels, outputs, name="frozen"), name, devices)


def _resized(prefix: Prefix, size: int) -> Prefix:
    """Return a copy of a prefix for images of another size.

    Raises:
        UserError: if the backbone takes images of one size alone.
    """
    try:
        graph = clone_at(prefix.graph, (size, size))
    except ValueError as error:
        raise UserError(
            f"augment.size={size} was given with a backbone that takes {prefix.graph.input.shape[1]} px only. Its"
            " layers depend on the size of the images. Type augment.size=null."
        ) from error
    return replace(prefix, graph=graph)


def _features(backbone: "Backbone", depths: tuple[int, ...]) -> "keras.KerasTensor":
    """Return what the head reads: the pooled output of the backbone, or those of several depths."""
    if not depths:
        return pool(backbone.network.output, backbone.pooling)
    blocks = [backbone.blocks[depth - 1] for depth in depths]
    return concatenate([block.output for block in blocks], [block.name for block in blocks], backbone.pooling)


def _suffix(backbone: "Backbone", plan: "Plan", depths: tuple[int, ...], any_size: bool) -> "keras.Model":
    import keras

    begin = backbone.blocks[plan.cut - 1].output if plan.cut else backbone.network.input
    original = keras.Model(begin, _features(backbone, depths), name="suffix")
    copy = clone_at(original, (None, None) if any_size else original.input.shape[1:3])
    for layer in copy.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # In training mode Keras normalises with batch statistics, unless `trainable` is False.
            layer.trainable = plan.batchnorm == "trainable" and layer.name in plan.stages[-1]
    if not plan.drop_connect:
        silence_dropout(copy)
    return copy
