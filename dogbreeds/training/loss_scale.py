"""Loss scaling: keeps small gradients from vanishing in float16.

The loss is multiplied before the gradient is computed, and the gradient divided afterwards. A step whose gradient
overflows is skipped, and the scale halved; after many steps without, it is doubled. These are the rules of
`keras.optimizers.LossScaleOptimizer`, with one scale for all of the optimizers that a step has.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Keras' own.
_INITIAL_SCALE = 2.0**15
_GROWTH_STEPS = 2000
# At this scale an overflow is that of the gradient itself.
_MIN_SCALE = 1.0


class LossScale:
    """The scale of the loss, and the number of steps since it was last changed, as variables.

    Create it within the scope of the devices.
    """

    def __init__(self) -> None:
        import keras

        # The same on each device.
        def variable(value: float, name: str) -> "keras.Variable":
            return keras.Variable(value, dtype="float32", trainable=False, aggregation="only_first_replica", name=name)

        self._scale = variable(_INITIAL_SCALE, "loss_scale")
        self._steps = variable(0.0, "loss_scale_steps")

    @property
    def variables(self) -> "list[keras.Variable]":
        """The state, which a checkpoint stores."""
        return [self._scale, self._steps]

    def scaled(self, loss: "tf.Tensor") -> "tf.Tensor":
        """Multiply a loss by the scale."""
        return loss * self._scale.value

    def unscaled(self, gradient: "list[tf.Tensor]") -> "list[tf.Tensor]":
        """Divide the gradient of a scaled loss by the scale."""
        return [part / self._scale.value for part in gradient]

    def update(self, is_finite: "tf.Tensor") -> "tf.Tensor":
        """Adapt the scale to whether the gradient was finite; return whether a smaller one could have made it so."""
        import tensorflow as tf

        scale, steps = tf.identity(self._scale.value), tf.identity(self._steps.value)
        grows = steps + 1 >= _GROWTH_STEPS
        grown = tf.where(grows, 2 * scale, scale)
        self._scale.assign(tf.where(is_finite, grown, tf.maximum(scale / 2, _MIN_SCALE)))
        self._steps.assign(tf.where(is_finite & ~grows, steps + 1, 0.0))
        return scale > _MIN_SCALE
