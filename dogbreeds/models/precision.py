"""Precision: by how much the probabilities of one network may differ between two computations."""

# Largest difference of a probability in float32, where only the order of additions differs.
FLOAT32_TOLERANCE = 1e-4
# The same with float16 features, or on a GPU that multiplies in TF32: both keep 11 bits. Measured for float16 features
# of the miniature: 1e-4. TF32, which rounds in every layer, was not measured, so it has room; another network differs
# by more.
_REDUCED_TOLERANCE = 5e-2


def probability_tolerance(features_dtype: str = "float32") -> float:
    """Return the largest difference of a probability that this machine's precision may cause.

    Args:
        features_dtype: precision of the cached features that the probabilities are computed from.
    """
    import tensorflow as tf

    multiplies_in_tf32 = (
        tf.config.experimental.tensor_float_32_execution_enabled() and tf.config.list_physical_devices("GPU") != []
    )
    return _REDUCED_TOLERANCE if features_dtype == "float16" or multiplies_in_tf32 else FLOAT32_TOLERANCE
