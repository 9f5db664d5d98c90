import numpy as np
import pytest

from dogbreeds.models.preprocessing import MODES, Preprocessing


@pytest.mark.parametrize("mode", MODES)
def test_preprocessing_mode_equals_keras_preprocess_input(mode: str, rng: np.random.Generator) -> None:
    import keras

    pixels = rng.integers(0, 256, size=(2, 5, 4, 3)).astype(np.float32)
    layer_input = keras.Input((None, None, 3))
    graph = keras.Model(layer_input, Preprocessing(mode=mode).apply(layer_input))
    expected = {"raw": pixels, "unit": pixels / 255}.get(mode)
    if expected is None:
        expected = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=mode)
    assert np.allclose(graph.predict(pixels, verbose=0), expected, atol=1e-4)
