"""L-BFGS: it finds the minimum of convex functions, and ends where rounding hides any further fall."""

import numpy as np

from dogbreeds.evaluation.lbfgs import minimise


def test_minimum_of_a_badly_scaled_convex_function_is_found(rng: np.random.Generator) -> None:
    n = 40
    scales = np.geomspace(1e-1, 1e1, n)
    optimum = rng.normal(size=n)

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        offset = x - optimum
        curved = np.logaddexp(offset, -offset)
        return float(scales @ curved), scales * np.tanh(offset)

    found = minimise(function, np.zeros(n), max_iterations=500, tolerance=1e-12)
    assert np.allclose(found.x, optimum, atol=1e-2)
    assert 10 < found.iterations < 500
    assert minimise(function, found.x, max_iterations=500, tolerance=1e-9).iterations <= 2
    assert minimise(function, np.zeros(n), max_iterations=3, tolerance=0.0).iterations == 3


def test_search_ends_where_no_step_lowers_the_value() -> None:
    # Rounded to whole numbers, as a loss in low precision is.
    found = minimise(lambda x: (float(np.round(x @ x)), 2 * x), np.full(3, 0.1), max_iterations=50, tolerance=0.0)
    assert found.iterations < 3
    assert np.isfinite(found.x).all()
