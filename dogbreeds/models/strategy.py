"""Device strategies: one device, or several devices of one machine."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec
from dogbreeds.core.text import received
from dogbreeds.models.replicas import OneDevice, Replicas

_DEVICE_NAME = re.compile(r"(CPU|GPU):\d{1,3}")
_MAX_DEVICES = 1000
_DRY_RUN = "'strategy.devices=[CPU:0,CPU:1]'"


@dataclass(frozen=True, kw_only=True)
class Strategy(Spec):
    """Base class of the device strategies."""

    group = "strategy"

    def build(self) -> OneDevice:
        """Claim the devices.

        Raises:
            UserError: if TensorFlow does not find them.
        """
        return OneDevice()


@dataclass(frozen=True, kw_only=True)
class Single(Strategy):
    """One device."""


def _check_devices(key: str, value: Any) -> int | tuple[str, ...] | None:
    """Check that the value is null, a number of GPUs, or distinct device names of one kind."""
    if value is None or (type(value) is int and 1 <= value <= _MAX_DEVICES):
        return value
    names = tuple(value) if isinstance(value, (list, tuple)) else ()
    are_names = all(isinstance(name, str) and _DEVICE_NAME.fullmatch(name) for name in names)
    if not names or not are_names or len({name[:3] for name in names}) > 1 or len(set(names)) < len(names):
        raise UserError(
            f"{key} was {received(value)}. It must be null for all GPUs, a number of GPUs, or distinct device names of"
            f" one kind, such as GPU:0. Type {key}=2 or '{key}=[GPU:0,GPU:1]', for example."
        )
    return names


@dataclass(frozen=True, kw_only=True)
class Mirrored(Strategy):
    """Several devices of this machine, each with a copy of the weights.

    Attributes:
        devices: None for all GPUs, a number of GPUs, or device names of one kind.
    """

    devices: int | tuple[str, ...] | None = dataclasses.field(metadata={"check": _check_devices})

    def build(self) -> OneDevice:
        import tensorflow as tf

        if isinstance(self.devices, tuple) and self.devices[0].startswith("CPU"):
            _split_cpu(1 + max(int(name[4:]) for name in self.devices))
            return Replicas(self.devices)
        gpus = [f"GPU:{number}" for number in range(len(tf.config.list_physical_devices("GPU")))]
        if not gpus:
            raise UserError(
                "strategy=mirrored was given, but TensorFlow finds no GPU on this machine. It splits each batch over"
                f" the GPUs of one machine. Type strategy=single, or {_DRY_RUN} for a dry run on the CPU."
            )
        return Replicas(self._choose(gpus))

    def _choose(self, gpus: list[str]) -> Sequence[str]:
        """Choose among the GPUs that TensorFlow finds."""
        if self.devices is None:
            return gpus
        too_many = isinstance(self.devices, int) and self.devices > len(gpus)
        chosen = gpus[: self.devices] if isinstance(self.devices, int) else list(self.devices)
        if too_many or not set(chosen) <= set(gpus):
            received = self.devices if isinstance(self.devices, int) else f"[{','.join(chosen)}]"
            raise UserError(
                f"strategy.devices was {received}. TensorFlow finds {', '.join(gpus)} on this machine."
                f" Type strategy.devices={len(gpus)}, or {'strategy=single' if len(gpus) == 1 else 'fewer'}."
            )
        return chosen


def _split_cpu(count: int) -> None:
    """Make TensorFlow present the CPU as at least this many logical devices, before it has started to use the CPU."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    if len(tf.config.get_logical_device_configuration(cpu) or [None]) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise UserError(
            f"strategy.devices names CPU:{count - 1}, but TensorFlow has already started with fewer CPU devices. They"
            " must be created before the first job of a process. Type a separate command for this strategy."
        ) from error
