"""Search space: the settings that a search varies, declared in Hydra's grammar, as Optuna's distributions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dogbreeds.core.errors import UserError

if TYPE_CHECKING:
    import optuna
    from hydra.core.override_parser.types import Override

_EXAMPLE = "'optimizer.lr=tag(log,interval(1e-5,1e-1))' 'head=choice(linear,mlp)'"


@dataclass(frozen=True)
class Space:
    """Search space.

    Attributes:
        distributions: Optuna's distribution of each setting that is searched, by key.
        fixed: overrides that all trials share.
    """

    distributions: "dict[str, optuna.distributions.BaseDistribution]"
    fixed: tuple[str, ...]

    @classmethod
    def from_overrides(cls, overrides: "Sequence[Override]") -> "Space":
        """Build the search space that parsed overrides describe.

        Raises:
            UserError: if no setting has a range, or a range is invalid.
        """
        distributions = {
            override.get_key_element(): _distribution(override)
            for override in overrides
            if override.is_sweep_override()
        }
        if not distributions:
            raise UserError(
                "hydra/sweeper=optuna was given, and no setting has a range. A search needs"
                f" interval(low,high), range(low,high) or choice(one,other) of at least one setting. Type {_EXAMPLE},"
                " for example."
            )
        fixed = [override for override in overrides if not override.is_sweep_override()]
        return cls(
            distributions,
            tuple(f"{override.get_key_element()}={override.get_value_element_as_str()}" for override in fixed),
        )

    def overrides(self, params: dict[str, Any]) -> list[str]:
        """Return the overrides of one trial.

        Args:
            params: sampled value of each setting that is searched.
        """
        return [*(f"{key}={params[key]}" for key in self.distributions), *self.fixed]


def _distribution(override: "Override") -> "optuna.distributions.BaseDistribution":
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            if low is None or high is None or low >= high:
                raise ValueError("its end is not above its start")
            log = "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(low, high, log=log)
        if isinstance(value, RangeSweep) and not value.shuffle:
            steps = value.range()
            if isinstance(steps, range):
                return IntDistribution(min(steps), max(steps), step=abs(steps.step))
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{override.input_line} is not a valid range ({str(error).splitlines()[0]}). It must be"
            " interval(low,high), with int(…) around it for whole numbers, range(low,high) or choice(one,other). Type"
            f" '{override.get_key_element()}=interval(1e-5,1e-1)', for example."
        ) from error
