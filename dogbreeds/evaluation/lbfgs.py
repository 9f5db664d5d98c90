"""L-BFGS: minimises a smooth convex function of many variables, from its values and gradients.

SciPy's L-BFGS-B has bounds, whose bookkeeping took three quarters of the time here, where there are none.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Pairs of a step and the change of the gradient that describe the curvature.
_MEMORY = 10
# A step is taken if the value falls by at least this share of what the gradient promises.
_SUFFICIENT_FALL = 1e-4
# Halvings of a step, after which rounding hides any further fall.
_MAX_HALVINGS = 20


class Minimum(NamedTuple):
    """Where the search ended.

    Attributes:
        x: [n] float64.
        iterations: steps that were taken.
    """

    x: np.ndarray
    iterations: int


class _Pair(NamedTuple):
    step: np.ndarray
    change: np.ndarray
    product: float


def minimise(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    max_iterations: int,
    tolerance: float,
) -> Minimum:
    """Minimise a function whose curvature is about 1 in each direction; the nearer, the faster.

    Args:
        function: returns value and gradient, [n] float64.
        start: [n] float64.
        max_iterations: steps at most.
        tolerance: ends after a step in which the value, or that share of it if it is above 1, falls by less.
    """
    x = start
    value, gradient = function(x)
    pairs: deque[_Pair] = deque(maxlen=_MEMORY)
    for iteration in range(max_iterations):
        direction = _direction(gradient, pairs)
        slope = float(direction @ gradient)
        length = 1.0
        for _ in range(_MAX_HALVINGS):
            candidate = x + length * direction
            new_value, new_gradient = function(candidate)
            if new_value <= value + _SUFFICIENT_FALL * length * slope:
                break
            length /= 2
        else:
            return Minimum(x, iteration)
        change = new_gradient - gradient
        step = length * direction
        product = float(step @ change)
        if product > 0:
            pairs.append(_Pair(step, change, product))
        fall = value - new_value
        x, value, gradient = candidate, new_value, new_gradient
        if fall <= tolerance * max(abs(value), 1.0):
            return Minimum(x, iteration + 1)
    return Minimum(x, max_iterations)


def _direction(gradient: np.ndarray, pairs: "deque[_Pair]") -> np.ndarray:
    """Return the gradient times minus the approximate inverse of the Hessian, by the two-loop recursion."""
    direction = -gradient
    shares = []
    for pair in reversed(pairs):
        share = float(pair.step @ direction) / pair.product
        direction -= share * pair.change
        shares.append(share)
    if pairs:
        newest = pairs[-1]
        direction *= newest.product / float(newest.change @ newest.change)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        direction += (share - float(pair.change @ direction) / pair.product) * pair.step
    return direction
