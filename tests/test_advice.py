"""Advice: what messages and verdicts say to type is accepted by the next command, and changes something."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import pytest
from omegaconf import OmegaConf

from dogbreeds import audit, compare, evaluate, export, predict, probe, soup, table
from dogbreeds import judge as judge_command
from dogbreeds.core.spec import Spec
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.verdict import Setting, judge
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.recipe import Recipe
from tests.test_docs import MESSAGES
from tests.test_verdict import CASES, N, curve
from tests.tiers import tiered

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra:UserWarning")

# An override as it is typed, perhaps in quotes.
_OVERRIDE = (
    r"""["']?(?:--multirun )?(?<![\w.])[a-z_]+(?:[./][a-zA-Z_]+)*=(?:\[[^\]]*\]|'[^']*'|<[^>]*>|[^\s,;'"\[]+)["']?"""
)
_ADVICE = re.compile(rf"{_OVERRIDE}(?: {_OVERRIDE})*")
# What a placeholder stands for, by setting.
SAMPLES = {
    "attempt": "frozen",
    "augment.size": "32",
    "model": "effnetb0",
    "model.architecture": "EfficientNetB0",
    "model.image_size": "64",
    "model.pixels": "tf",
    "data.classes": "240",
    "models": "[effnetb0]",
    "data.max_corrupt_fraction": "0.1",
    "data.root": ".",
    "features.layers": "[block6a,top]",
    "format": "csv",
    "members": "[3f2a9c41,8d01b7e2]",
    "phase.members": "[3f2a9c41,8d01b7e2]",
    "formats": "[keras,onnx]",
    "head.C": "1e-3",
    "hydra.launcher.partition": "gpu",
    "only.data": "miniature",
    "optimizer.lr": "1e-3",
    "phase.max_lr": "100",
    "port": "5002",
    "preprocessing": "torch",
    "recipe.start": "best",
    "shard": "0",
    "split": "val",
    "strategy.devices": "2",
    "tracking.uri": "sqlite:///mlflow.db",
    "unfreeze.layers": "20",
    "unfreeze.names": "[top]",
    "unfreeze.top": "2",
}
# Arguments of a Python call, and what only the user has.
_NOT_TYPED = {"at_least", "axis", "class_names", "config_dir", "dtype", "example", "plugins"}
# Options that a setting belongs to, where the default is another.
OPTIONS = {
    "augment.copies": ["augment=crop"],
    "augment.size": ["augment=crop"],
    "data.image_column": ["data=csv"],
    "data.label_column": ["data=csv"],
    "data.name": ["data=tfds"],
    "data.outside_root": ["data=csv"],
    "data.root": ["data=folder"],
    "data.split_column": ["data=csv"],
    "data.table": ["data=csv"],
    "data.val_fraction": ["data=folder", "data.root=."],
    "model.architecture": ["model=effnetb0"],
    "model.arguments": ["model=effnetb0"],
    "model.converter": ["model=hub", "model.preset=x"],
    "phase.members": ["phase=soup"],
    "model.path": ["model=keras"],
    "model.pooling": ["model=keras", "model.path=x.keras"],
    "head.C": ["head=logistic"],
    "head.choose_by": ["head=logistic"],
    "model.preset": ["model=hub"],
    "hydra.launcher.gpus_per_node": ["hydra/launcher=submitit_slurm"],
    "hydra.launcher.partition": ["hydra/launcher=submitit_slurm"],
    "hydra.launcher.ray.init.address": ["hydra/launcher=ray"],
    "hydra.sweeper.storage": ["hydra/sweeper=optuna"],
    "hydra.sweeper.study_name": ["hydra/sweeper=optuna"],
    "model.alpha": ["model=mobilenetv2"],
    "phase.max_lr": ["phase=lr_range"],
    "phase.min_lr": ["phase=lr_range"],
    "phase.parent": ["phase=finetune"],
    "recipe.start": ["recipe=best"],
    "strategy.devices": ["strategy=mirrored"],
    "unfreeze.exact": ["unfreeze=last_n"],
    "unfreeze.layers": ["unfreeze=last_n"],
    "unfreeze.names": ["unfreeze=blocks"],
    "unfreeze.top": ["unfreeze=blocks"],
}
# Commands besides `train`, with the specs of their settings.
COMMANDS: dict[str, type[Spec] | None] = {
    "predict": predict.Settings,
    "evaluate": evaluate.Settings,
    "export": export.Settings,
    "compare": compare.Settings,
    "table": table.Settings,
    "judge": judge_command.Settings,
    "probe": probe.Settings,
    "audit": audit.Settings,
    "soup": soup.Settings,
    "extract": None,
    "why": None,
    "cache": None,
    "ui": None,
}


def advised(message: str) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of each alternative that a message says to type."""
    start = re.search(r"\b([Tt]ype|[Ss]et) ", message)
    for found in _ADVICE.findall(message[start.end() :] if start else ""):
        words = [word.rstrip(".") for word in re.findall(_OVERRIDE, found)]
        yield tuple(word[1:-1] if word[0] in "'\"" and word[-1] == word[0] else word for word in words)


def filled(override: str) -> str:
    """Put a sample in the place of a placeholder."""
    key, _, value = override.partition("=")
    if not re.search(r"[<…%\[]", value) or (key not in SAMPLES and "[" in value):
        return override
    return f"{key}={SAMPLES.get(key, 'sample')}"


ADVICE = sorted(
    {
        overrides
        for messages in MESSAGES.values()
        for text in messages
        for overrides in advised(text)
        if not {word.partition("=")[0].lstrip("'") for word in overrides} & _NOT_TYPED
        # The advice for a rate that is not known, which is put in other words.
        and overrides != ("optimizer.lr=nan",)
        # A Python expression is cut off at its first comma or space.
        and all(word.count("(") == word.count(")") for word in overrides)
    }
)


def accept(overrides: Sequence[str]) -> None:
    """Compose a command with overrides, and check its settings as the command does."""
    keys = [override.partition("=")[0] for override in overrides]
    options = [option for key in keys for option in OPTIONS.get(key, [])]
    name = next(name for name in ("train", *COMMANDS) if set(keys) <= KEYS[name] | OPTIONS.keys() - {"split"})
    config = compose_config(name, [*options, *overrides])
    if name in ("train", "extract", "why"):
        assert Recipe.of(config) or from_config(config).key
    spec = COMMANDS.get(name)
    if spec is not None:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        checks = {field.name: field.metadata["check"] for field in fields(spec)}
        for key in set(keys) & checks.keys():
            checks[key](key, plain[key])


def _keys(name: str) -> set[str]:
    config = compose_config(name, with_hydra=True)
    plain: Any = OmegaConf.to_container(config, resolve=False)
    groups = set(plain["hydra"]["runtime"]["choices"])
    return (
        groups
        | {f"{key}.{inner}" for key, value in plain.items() if isinstance(value, dict) for inner in value}
        | set(plain)
    )


@pytest.fixture(scope="module")
def keys() -> None:
    KEYS.update({name: _keys(name) for name in ("train", *COMMANDS)})


KEYS: dict[str, set[str]] = {}


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("overrides",), tiered([(advice,) for advice in ADVICE], slow=[(advice,) for advice in ADVICE[::6]]), ids=" ".join
)
def test_command_accepts_what_a_message_says_to_type(overrides: tuple[str, ...]) -> None:
    accept([filled(override) for override in overrides])


def test_advice_is_found_in_messages_of_every_kind() -> None:
    assert len(ADVICE) > 60
    assert {
        ("phase=finetune",),
        ("phase=frozen", "unfreeze=none"),
        ("first=best", "second=latest"),
        ("optimizer.lr=…",),
        ("images=path/to/images",),
        ("formats=[keras,onnx]",),
        ("why.seeds=[0,1,2]",),
        ("data=folder", "data.root=<images>"),
    } <= set(ADVICE)


LEARNED = curve([60, 70, 74, 76, 77])
SETTINGS = {"phase": "Frozen", "unfreeze": "Nothing", "tracking": "Mlflow", "tracking.model": "best"}


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({}, "phase=finetune"),
        ({"tracking.model": "all"}, "phase=finetune"),
        # A parent's backbone is frozen, and its head is recorded.
        ({"unfreeze": "LastN"}, "unfreeze=none"),
        ({"tracking.model": "none"}, "tracking.model=best"),
    ],
)
def test_verdict_advises_a_fine_tune_only_if_it_would_find_its_parent(changed: dict[str, str], advice: str) -> None:
    verdict = judge(LEARNED, Setting(120, 1e-3, settings=SETTINGS | changed))
    assert verdict.name == "learned"
    assert list(advised(verdict.advice)) == [(advice,)]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"optimizer.clipnorm": None}, {("optimizer.lr=1e-3",), ("optimizer.clipnorm=1",)}),
        ({"optimizer.clipnorm": 1.0}, {("optimizer.lr=1e-3",)}),
        # Curves of another program.
        ({}, {("optimizer.lr=1e-3",)}),
    ],
)
def test_divergence_advises_clipping_unless_gradients_were_clipped(settings: dict, advice: set) -> None:
    setting = Setting(120, 1e-2, diverged="the loss was nan at step 7 (epoch 2), lr 0.01", settings=settings)
    assert set(advised(judge(LEARNED, setting).advice)) == advice


RUNS = (
    (),
    ("optimizer.clipnorm=1",),
    ("head=batchnorm",),
    ("augment=guide",),
    ("phase=frozen", "unfreeze=none"),
    ("tracking=none",),
    ("tracking.model=none",),
    ("phase=finetune",),
    ("phase=finetune", "unfreeze.batchnorm=trainable"),
    ("phase=finetune", "head=logistic"),
    ("preprocessing=torch",),
)


@pytest.mark.slow
@pytest.mark.parametrize("typed", RUNS, ids=" ".join)
def test_advice_of_every_verdict_is_accepted_and_changes_the_run(typed: tuple[str, ...]) -> None:
    run = from_config(compose_config("train", typed))
    pair = PairedOutcome(10, 60, N, "test") if "phase=finetune" in typed else None
    said = set()
    for epochs, about, *_ in CASES.values():
        for native in (True, run.preprocessing.mode == run.model.pixels):
            setting = Setting(120, run.optimizer.lr, native, pair, about.diverged, run.parameters())
            said |= set(advised(judge(epochs, setting).advice))
    assert said
    for overrides in said:
        changed = from_config(compose_config("train", [*typed, *overrides]))
        assert changed != run, overrides
