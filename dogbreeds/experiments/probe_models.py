"""The backbones that a probe compares: options of the group `model`, each with settings of its own."""

import dataclasses
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer, texts
from dogbreeds.core.text import most_similar, received, shorten
from dogbreeds.experiments.ablation_runs import replace_overrides
from dogbreeds.experiments.compose import compose_config, from_config, settings_of
from dogbreeds.experiments.python_runs import provided_data
from dogbreeds.experiments.run import Run
from dogbreeds.models.unfreeze import Nothing
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.phase import Frozen

# Settings that may differ between the backbones of a table.
_OWN_SETTINGS = ("model.", "preprocessing=", "preprocessing.", "baseline=", "baseline.")
# Characters of a run's name.
_MAX_NAME_LENGTH = 100
_EXAMPLE = "'models=[effnetb0,\"mobilenetv2 model.alpha=0.35\"]'"


@dataclass(frozen=True, kw_only=True)
class ProbeModels(Spec):
    """The backbones to compare, as they are named.

    Attributes:
        models: options of the group `model`; settings of one follow its name, separated by spaces.
    """

    group = ""
    models: tuple[str, ...] = texts(example='[effnetb0,"mobilenetv2 model.alpha=0.35"]')

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            raise UserError(
                "models was empty. It must name the backbones to compare, options of conf/model/. Type"
                " 'models=[effnetb0,mobilenetv2]', for example."
            )


@dataclass(frozen=True, kw_only=True)
class Probe(Spec):
    """Settings of the probe.

    Attributes:
        images: of the sample that all backbones are probed on first, training and validation together; None for all
            images at once.
    """

    group = "probe"
    images: int | None = integer(at_least=50, example=2000, optional=True)

    @classmethod
    def of(cls, config: DictConfig) -> "Probe":
        """Return the settings that the command's config has.

        Raises:
            UserError: if a value or a setting is not allowed.
        """
        return cls(**settings_of(config, "probe", "images"))


@dataclass(frozen=True)
class ProbeModel:
    """A backbone to probe.

    Attributes:
        name: what it is called in the table: its option, and the settings that distinguish it.
        run: the frozen run that it would have.
    """

    name: str
    run: Run


def compose_models(
    models: Sequence[str], typed: Sequence[str], sources: Sequence[str] | None = None, is_provided: bool = False
) -> list[ProbeModel]:
    """Compose the run of each backbone.

    Args:
        models: as in `ProbeModels`.
        typed: overrides for all of them.
        sources: where to find configs besides `conf/`, as for `compose_config`.
        is_provided: whether a Python caller gives the images.

    Raises:
        UserError: if a name or a setting is not allowed, a backbone is named twice, or their data differ.
    """
    _check_typed(typed)
    # The check takes a list, and refuses a string.
    given: Any = models
    items = [_split(item) for item in ProbeModels(models=given).models]
    runs = [_compose(name, own, typed, sources) for name, own in items]
    if is_provided:
        runs = [dataclasses.replace(run, data=provided_data(run)) for run in runs]
    for run in runs:
        _check_run(run, runs[0])
    distinct = {(run.model, run.preprocessing, run.baseline) for run in runs}
    if len(distinct) < len(runs):
        (item, _), *_ = Counter(" ".join(each) for each in map(_flat, items)).most_common(1)
        raise UserError(
            f"models has {received(item)} twice, or with settings that change nothing. Each backbone must be named"
            f" once. Type {_EXAMPLE}, for example."
        )
    return [ProbeModel(name, run) for name, run in zip(_names(items), runs, strict=True)]


def probe_origin(config: DictConfig, overrides: Sequence[str], models: Sequence[ProbeModel]) -> RunOrigin:
    """Describe what a probe was composed from.

    Args:
        config: config of the command, without Hydra's own.
        overrides: as they were typed.
        models: the backbones.
    """
    name = f"probe {', '.join(model.name for model in models)}"
    return RunOrigin(OmegaConf.to_yaml(config), tuple(overrides), shorten(name, _MAX_NAME_LENGTH), folder=None)


def _flat(item: tuple[str, list[str]]) -> list[str]:
    return [item[0], *item[1]]


def _check_typed(typed: Sequence[str]) -> None:
    named = [override for override in typed if override.lstrip("+").startswith("model=")]
    if named:
        option = named[0].partition("=")[2]
        raise UserError(
            f"{named[0]} was given. A probe compares the backbones that models names. Type 'models=[{option}]'."
        )


def _split(item: str) -> tuple[str, list[str]]:
    """Return option and settings of one of the backbones, as they were named.

    Raises:
        UserError: if it is not an option that settings of the backbone follow.
    """
    try:
        name, *own = shlex.split(item)
    except ValueError:
        name, own = "", []
    wrong = [setting for setting in own if not setting.startswith(_OWN_SETTINGS) or "=" not in setting]
    if wrong or not name.replace("_", "").isalnum():
        raise UserError(
            f"models has {received(item)}. Each must be an option of conf/model/, and may be followed by settings of"
            f" model, preprocessing and baseline, separated by spaces. Type {_EXAMPLE}, for example."
        )
    return name, own


def _compose(name: str, own: Sequence[str], typed: Sequence[str], sources: Sequence[str] | None) -> Run:
    overrides = replace_overrides(typed, [f"model={name}", *own])
    try:
        return from_config(compose_config("probe", overrides, sources=sources))
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error, MissingConfigException) and error.missing_cfg_file == f"model/{name}":
            near = most_similar(name, sorted(error.options or ()))
            raise UserError(
                f"models has {received(name)}, which is not an option. It must be one of conf/model/ or of a plugin;"
                f" python -m dogbreeds.train --help lists them. Type 'models=[{near}]', for example."
            ) from error
        cause = str(error if str(error) else error.__cause__).splitlines()[0].rstrip(".")
        raise UserError(
            f"models has {received(' '.join([name, *own]))} ({cause}). The settings that follow an option must be its"
            f" own, as its file in conf/model/ lists them. Type {_EXAMPLE}, for example."
        ) from error


def _check_run(run: Run, first: Run) -> None:
    """Check that a backbone is frozen, and has the same data as the first one."""
    if not isinstance(run.phase, Frozen) or type(run.unfreeze) is not Nothing:
        raise UserError(
            f"phase was {type(run.phase).__name__} and unfreeze {type(run.unfreeze).__name__}. A probe measures"
            " features of frozen backbones. Type phase=frozen unfreeze=none, or leave both out."
        )
    if run.data != first.data:
        raise UserError(
            f"No data was given, and {first.model.architecture} and {run.model.architecture} have different defaults."
            " All backbones are probed on the same images. Type data=folder data.root=photos, for example."
        )


def _names(items: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return a short name for each backbone: its option and its settings, without paths unless these distinguish it."""
    short = [" ".join([name, *(_setting(each) for each in own if "/" not in each)]) for name, own in items]
    whole = [" ".join([name, *map(_setting, own)]) for name, own in items]
    full = [" ".join(_flat(item)) for item in items]
    return [
        next((names[index] for names in (short, whole) if names.count(names[index]) == 1), full[index])
        for index in range(len(items))
    ]


def _setting(setting: str) -> str:
    """Shorten `model.weights=folder/b0.h5` to `weights=b0.h5`."""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]}={value.rpartition('/')[2]}"
