"""The strategy: one device, or several of one machine."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec
from dogbreeds.models.replicas import OneDevice, Replicas

_NAME = re.compile(r"(CPU|GPU):\d+")
_DRY = "'strategy.devices=[CPU:0,CPU:1]'"


@dataclass(frozen=True, kw_only=True)
class Strategy(Spec):
    """What the ways to place a network have in common."""

    group = "strategy"

    def build(self) -> OneDevice:
        """Claims the devices.

        Raises:
            UserError: where they are not there.
        """
        return OneDevice()


@dataclass(frozen=True, kw_only=True)
class Single(Strategy):
    """One device."""


def _devices(key: str, value: Any) -> int | tuple[str, ...] | None:
    """Null, a number, or different names of one kind."""
    if value is None or (type(value) is int and value >= 1):
        return value
    names = tuple(value) if isinstance(value, (list, tuple)) else ()
    named = all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
    if not names or not named or len({name[:3] for name in names}) > 1 or len(set(names)) < len(names):
        raise UserError(
            f"{key} was {value!r}. It must be null for all GPUs, their number, or different names of one kind, such as"
            f" GPU:0. Type {key}=2 or '{key}=[GPU:0,GPU:1]', for example."
        )
    return names


@dataclass(frozen=True, kw_only=True)
class Mirrored(Strategy):
    """Several devices of this machine, each with a copy of the weights."""

    devices: int | tuple[str, ...] | None = dataclasses.field(metadata={"check": _devices})

    def build(self) -> OneDevice:
        import tensorflow as tf

        if isinstance(self.devices, tuple) and self.devices[0].startswith("CPU"):
            _divide_processor(1 + max(int(name[4:]) for name in self.devices))
            return Replicas(self.devices)
        there = [f"GPU:{number}" for number in range(len(tf.config.list_physical_devices("GPU")))]
        wanted = (
            tuple(there[: self.devices])
            if isinstance(self.devices, int)
            else there
            if self.devices is None
            else self.devices
        )
        if not there:
            raise UserError(
                "strategy=mirrored was asked for, and TensorFlow finds no GPU here. It splits each batch over GPUs of"
                f" this machine. Type strategy=single, or {_DRY} for a dry run on the processor."
            )
        if (isinstance(self.devices, int) and self.devices > len(there)) or not set(wanted) <= set(there):
            said = self.devices if isinstance(self.devices, int) else f"[{','.join(wanted)}]"
            raise UserError(
                f"strategy.devices was {said}. TensorFlow finds {', '.join(there)} here. "
                f"Type strategy.devices={len(there)}, or {'strategy=single' if len(there) == 1 else 'fewer'}."
            )
        return Replicas(wanted)


def _divide_processor(count: int) -> None:
    """Has TensorFlow show the processor as this many devices at least; it must not have begun to use it."""
    import tensorflow as tf

    (processor,) = tf.config.list_physical_devices("CPU")
    if len(tf.config.get_logical_device_configuration(processor) or [None]) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise UserError(
            f"strategy.devices names CPU:{count - 1}, and TensorFlow has begun with fewer devices. They must be made"
            " before the first job of a process. Type a command of its own for this strategy."
        ) from error
