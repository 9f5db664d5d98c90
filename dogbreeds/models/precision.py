"""Precision: in which the layers that train compute, and by how much two computations of a network may differ.

In mixed precision, layers compute in a 16-bit type and their weights stay in float32, as in Keras' dtype policies of
the same names. Only training steps are mixed: what is measured, predicted and saved is computed in float32, so that
a saved network gives what was recorded, wherever it is loaded.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

FLOAT32 = "float32"
# Names of Keras' dtype policies.
PRECISIONS = (FLOAT32, "mixed_bfloat16", "mixed_float16")
# Largest relative mean difference of features from those of Keras, by the precision that a runtime computes in.
FEATURE_ALLOWANCES = {FLOAT32: 1e-5, "bfloat16": 3e-2}
# Largest difference of a probability in float32, where only the order of additions differs.
FLOAT32_TOLERANCE = 1e-4
# The same with float16 features, or on a GPU that multiplies in TF32: both keep 11 bits. Measured for float16 features
# of the miniature: 1e-4. TF32, which rounds in every layer, was not measured, so it has room; another network differs
# by more.
_REDUCED_TOLERANCE = 5e-2
# The same with features computed in bfloat16, which keeps 8 bits.
_BFLOAT16_TOLERANCE = 0.2


def probability_tolerance(features_dtype: str = "float32", features_precision: str = "float32") -> float:
    """Return the largest difference of a probability that this machine's precision may cause.

    Args:
        features_dtype: type that the features are cached in.
        features_precision: precision that they are computed in.
    """
    if features_precision == "bfloat16":
        return _BFLOAT16_TOLERANCE
    import tensorflow as tf

    multiplies_in_tf32 = (
        tf.config.experimental.tensor_float_32_execution_enabled() and tf.config.list_physical_devices("GPU") != []
    )
    return _REDUCED_TOLERANCE if features_dtype == "float16" or multiplies_in_tf32 else FLOAT32_TOLERANCE


@contextlib.contextmanager
def computes_in(precision: str, layers: "Sequence[keras.Layer]") -> Iterator[None]:
    """Trace layers in a precision; afterwards they have their own again, so that they are saved as they were built.

    The last layer, which gives the logits, and layers that normalise pixels compute in float32.

    Args:
        precision: one of `PRECISIONS`.
        layers: in the order of computation.
    """
    if precision == FLOAT32:
        yield
        return
    import keras

    parts = [part for layer in layers[:-1] for part in layer._flatten_layers()]
    reduced = [part for part in parts if not isinstance(part, (keras.layers.Rescaling, keras.layers.Normalization))]
    policies = [part.dtype_policy for part in reduced]
    for part in reduced:
        part.dtype_policy = precision
    try:
        yield
    finally:
        for part, policy in zip(reduced, policies, strict=True):
            part.dtype_policy = policy
