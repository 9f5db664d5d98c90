"""Where Hydra looks for plugins: `hydra/sweeper=optuna`. All that it does is in `dogbreeds.search`, which is imported when a search begins."""

from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Samples a sweep's jobs by Optuna, instead of running a grid."""

    def __init__(self, **settings: Any):
        self._settings = settings
        self._launcher: Launcher | None = None

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig") -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> "list[JobReturn]":
        from importlib.util import find_spec

        from omegaconf import OmegaConf

        from dogbreeds.core.errors import UserError
        from dogbreeds.experiments.search import Search, Settings, Space

        if find_spec("optuna") is None:
            raise UserError(
                "hydra/sweeper=optuna was asked for and is not installed. A search needs Optuna. Type pip install"
                " 'dogbreeds[search]'."
            )

        assert self._launcher is not None
        assert self.hydra_context is not None
        assert self.config is not None
        settings = Settings(**self._settings)
        space = Space.of(OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments))
        about = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key not in ("hydra", "rerun")])
        return Search(settings, space, OmegaConf.to_yaml(about), self.config.rerun).run(self._launcher)
