"""Precision: by how much features and probabilities of one network may differ between two computations."""

# Largest relative mean difference of features from those of Keras, by the precision that a runtime computes in.
FEATURE_ALLOWANCES = {"float32": 1e-5, "bfloat16": 3e-2}

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
