import numpy as np
import pytest

from dogbreeds.models.head import MLP, BatchNorm, Linear

HEADS = {"mlp": MLP(widths=[512, 256], dropout=0.5), "linear": Linear(dropout=0.0), "batchnorm": BatchNorm(dropout=0.2)}


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [
        (
            "mlp",
            ["Dense", "Dropout", "Dense", "Dropout", "Dense"],
            1792 * 512 + 512 + 512 * 256 + 256 + 256 * 120 + 120,
        ),
        ("linear", ["Dense"], 1792 * 120 + 120),
        ("batchnorm", ["BatchNormalization", "Dropout", "Dense"], 4 * 1792 + 1792 * 120 + 120),
    ],
)
def test_head_has_the_layers_and_parameters_of_its_source(name: str, layers: list[str], parameters: int) -> None:
    head = HEADS[name].build(1792, 120, seed=0)
    assert [type(layer).__name__ for layer in head.layers] == layers
    assert head.count_params() == parameters


@pytest.mark.parametrize("name", HEADS)
def test_head_weights_and_dropout_depend_on_the_seed(name: str, rng: np.random.Generator) -> None:
    features = rng.normal(size=(4, 8)).astype(np.float32)
    first, again, other = (np.asarray(HEADS[name].build(8, 3, seed)(features, training=True)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_head_layers_of_the_same_shape_have_different_initial_weights() -> None:
    head = MLP(widths=[8, 8], dropout=0.5).build(8, 8, seed=0)
    first, second, third = (layer.kernel.numpy() for layer in head.layers if hasattr(layer, "kernel"))
    assert not np.allclose(first, second)
    assert not np.allclose(second, third)
    assert not np.allclose(first, third)
