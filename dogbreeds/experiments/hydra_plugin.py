"""Hydra plugin for `hydra/sweeper=optuna`.

The search itself is `dogbreeds.experiments.search`, which is imported only when a search starts.
"""

from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from dogbreeds.core.errors import UserError

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

# `_target_` in conf/hydra/sweeper/optuna.yaml. Hydra accepts only names in the namespace `hydra_plugins`.
PLUGIN_NAME = "hydra_plugins.dogbreeds_optuna.OptunaSweeper"


class OptunaSweeper(Sweeper):
    """Sweeper whose jobs are sampled by Optuna instead of a grid.

    Args:
        settings: fields of `dogbreeds.experiments.search.Settings`.
    """

    # Set by `setup`, which Hydra calls before `sweep`.
    hydra_context: "HydraContext"
    config: "DictConfig"
    _launcher: "Launcher"

    def __init__(self, **settings: Any):
        self._settings = settings

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig") -> None:
        self.hydra_context = hydra_context
        self.config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> "list[JobReturn]":
        from importlib.util import find_spec

        from omegaconf import OmegaConf

        from dogbreeds.experiments.compose import job_config
        from dogbreeds.experiments.plugins import named_plugins, sources_digest
        from dogbreeds.experiments.search import Search, Settings
        from dogbreeds.experiments.search_space import Space

        if find_spec("optuna") is None:
            raise UserError(
                "hydra/sweeper=optuna was given, and Optuna is not installed. A search needs it. Type pip install"
                " 'dogbreeds[search]'."
            )

        settings = Settings(**self._settings)
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        space = Space.from_overrides(overrides)
        # `rerun` does not change what is searched, and Hydra's part differs in every command. The results of a plugin's
        # earlier code are not those of its present code.
        config = OmegaConf.to_yaml(job_config(self.config, "rerun")) + sources_digest(named_plugins(self.config))
        return Search(settings, space, config, self.config.rerun).run(self._launcher)


def register() -> None:
    """Make the sweeper available to Hydra, under `PLUGIN_NAME`.

    A module of that name would be found by Hydra itself, but only where the package is installed, and in an editable
    install it would be a copy that does not follow the checkout.
    """
    Plugins.instance().class_name_to_class[PLUGIN_NAME] = OptunaSweeper
