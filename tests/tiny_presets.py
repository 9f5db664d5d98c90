"""Presets of KerasHub that are made in a second: a tiny network of each family, with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE = 32
# Of their image converters: a value of each channel, which no preprocessing mode has.
SCALE = (1 / 58, 1 / 57, 1 / 56)
OFFSET = (-2.1, -2.0, -1.8)

_IMAGES: dict[str, Any] = {"image_shape": (SIZE, SIZE, 3)}
_ANY: dict[str, Any] = {"image_shape": (None, None, 3)}
_PATCHES: dict[str, Any] = {**_IMAGES, "patch_size": 8}
_ENCODER: dict[str, Any] = {"num_layers": 3, "num_heads": 2, "hidden_dim": 16}
_EFFICIENTNET: dict[str, Any] = {
    **_ANY,
    "width_coefficient": 0.3,
    "depth_coefficient": 0.5,
    "stackwise_kernel_sizes": [3, 3, 5],
    "stackwise_num_repeats": [2, 4, 4],
    "stackwise_input_filters": [24, 16, 24],
    "stackwise_output_filters": [16, 24, 40],
    "stackwise_strides": [1, 2, 2],
    "stackwise_force_input_filters": [0] * 3,
    "stackwise_nores_option": [False] * 3,
}

# Family: class, and its arguments.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTBackbone", {**_PATCHES, **_ENCODER, "mlp_dim": 32, "dropout_rate": 0.1}),
    "deit": ("DeiTBackbone", {**_PATCHES, **_ENCODER, "intermediate_dim": 32}),
    "dinov2": (
        "DINOV2Backbone",
        {
            **_PATCHES,
            **_ENCODER,
            "intermediate_dim": 32,
            "num_register_tokens": 2,
            "position_embedding_shape": (64, 64),
            "drop_path_rate": 0.1,
        },
    ),
    "dinov3": ("DINOV3Backbone", {**_PATCHES, **_ENCODER, "intermediate_dim": 32, "num_register_tokens": 2}),
    "swin": (
        "SwinTransformerBackbone",
        {**_IMAGES, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4, "patch_size": 4},
    ),
    "mit": (
        "MiTBackbone",
        {
            **_IMAGES,
            "hidden_dims": [8, 16],
            "layerwise_num_heads": [1, 2],
            "layerwise_sr_ratios": [2, 1],
            "layerwise_patch_sizes": [7, 3],
            "layerwise_strides": [4, 2],
            "max_drop_path_rate": 0.1,
            "layerwise_depths": [2, 2],
            "num_layers": 2,
        },
    ),
    "resnet": (
        "ResNetBackbone",
        {
            **_ANY,
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 64],
            "stackwise_num_blocks": [2, 2],
            "stackwise_num_strides": [1, 2],
            "block_type": "basic_block",
            "use_pre_activation": False,
        },
    ),
    "densenet": (
        "DenseNetBackbone",
        {**_IMAGES, "stackwise_num_repeats": [2, 2], "growth_rate": 4, "compression_ratio": 0.5},
    ),
    "vgg": ("VGGBackbone", {**_IMAGES, "stackwise_num_repeats": [1, 1, 2], "stackwise_num_filters": [8, 8, 16]}),
    "xception": (
        "XceptionBackbone",
        {**_ANY, "stackwise_conv_filters": [[8, 8], [16, 16], [32, 32]], "stackwise_pooling": [True, True, False]},
    ),
    "efficientnet": (
        "EfficientNetBackbone",
        {
            **_EFFICIENTNET,
            "stackwise_expansion_ratios": [1, 6, 6],
            "stackwise_squeeze_and_excite_ratios": [0.25] * 3,
            "stackwise_block_types": ["v1"] * 3,
            "include_initial_padding": True,
            "stem_conv_padding": "valid",
        },
    ),
    "efficientnetv2": (
        "EfficientNetBackbone",
        {
            **_EFFICIENTNET,
            "stackwise_expansion_ratios": [1, 4, 6],
            "stackwise_squeeze_and_excite_ratios": [0, 0, 0.25],
            "stackwise_block_types": ["fused", "fused", "unfused"],
            "min_depth": 8,
        },
    ),
    "mobilenet": (
        "MobileNetBackbone",
        {
            **_ANY,
            "stackwise_expansion": [[40, 56], [64, 144]],
            "stackwise_num_blocks": [2, 2],
            "stackwise_num_filters": [[16, 16], [24, 24]],
            "stackwise_kernel_size": [[3, 3], [5, 5]],
            "stackwise_num_strides": [[2, 1], [2, 1]],
            "stackwise_se_ratio": [[0.25, None], [0.25, 0.25]],
            "stackwise_activation": [["relu6"] * 2, ["hard_swish"] * 2],
            "stackwise_padding": [[1, 1], [2, 2]],
            "output_num_filters": 32,
            "input_num_filters": 16,
            "input_activation": "hard_swish",
            "output_activation": "hard_swish",
            "depthwise_filters": 8,
            "depthwise_stride": 2,
            "depthwise_residual": False,
            "squeeze_and_excite": 0.5,
            "last_layer_filter": 32,
        },
    ),
    "cspnet": (
        "CSPNetBackbone",
        {
            **_IMAGES,
            "stem_filters": 8,
            "stem_kernel_size": 3,
            "stem_strides": 1,
            "stackwise_num_filters": [8, 16],
            "stackwise_strides": [2, 2],
            "stackwise_depth": [1, 2],
            "block_type": "dark_block",
            "stage_type": "csp",
            "bottle_ratio": [0.5, 1.0],
            "block_ratio": [1.0, 0.5],
            "expand_ratio": [2.0, 1.0],
            "stem_padding": "valid",
            "stem_pooling": None,
        },
    ),
    "hgnetv2": (
        "HGNetV2Backbone",
        {
            **_ANY,
            "depths": [1, 2],
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "stem_channels": [3, 8, 8],
            "hidden_act": "relu",
            "use_learnable_affine_block": True,
            "stackwise_stage_filters": [[8, 8, 16, 1, 3, 3], [16, 8, 16, 2, 3, 3]],
            "apply_downsample": [False, True],
            "use_lightweight_conv_block": [False, True],
        },
    ),
    "siglip": ("SigLIPBackbone", {**_PATCHES, **_ENCODER, "intermediate_dim": 32}),
}


def build(family: str) -> Any:
    """Build the backbone of a family, with random weights."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(5)
    name, arguments = FAMILIES[family]
    if family != "siglip":
        return getattr(keras_hub.models, name)(**arguments)
    from keras_hub.src.models.siglip.siglip_text_encoder import SigLIPTextEncoder
    from keras_hub.src.models.siglip.siglip_vision_encoder import SigLIPVisionEncoder

    text = {"vocabulary_size": 16, "embedding_dim": 8, "hidden_dim": 8, "num_layers": 1, "num_heads": 2}
    texts = SigLIPTextEncoder(**text, intermediate_dim=8, max_sequence_length=4)
    return keras_hub.models.SigLIPBackbone(SigLIPVisionEncoder(**arguments), texts)


def save(family: str, folder: Path, converter: bool = True) -> Any:
    """Save the preset of a family, and return its backbone."""
    import keras_hub

    backbone = build(family)
    backbone.save_to_preset(str(folder))
    if converter:
        (kind,) = [
            each for each in keras_hub.layers.ImageConverter.__subclasses__() if each.backbone_cls is type(backbone)
        ]
        kind(image_size=(SIZE, SIZE), scale=list(SCALE), offset=list(OFFSET)).save_to_preset(str(folder))
    return backbone


def saver(folder: Path) -> Callable[[str], Path]:
    """Return a function that saves the preset of a family once, and returns its folder."""

    def preset(family: str) -> Path:
        if not (folder / family).exists():
            save(family, folder / family)
        return folder / family

    return preset
