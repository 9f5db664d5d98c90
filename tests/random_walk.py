"""Random walk over the commands: valid and broken overrides, odd names, and damage between the commands.

Each command must end by itself, with the right exit code, without a traceback, and without a half-written file. What
a step does follows from the seed and its number. A step that fails is printed with all steps before it.

python tests/random_walk.py 300 7               # steps, seed; each command in a forked process of its own
python tests/random_walk.py 30 0 --one-process  # all commands in this process, which nothing interrupts
"""

import argparse
import contextlib
import csv
import io
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dogbreeds.data import drawn_dogs
from tests import prefork

# Seconds after which a command counts as hanging. They are ten times what any takes on an idle machine.
TIMEOUT_SECONDS = 240
CLASS_NAMES = (
    "Bärenhund", "🐕 mops", "a, b", 'it\'s "big"', "=1+1", "-rf", "+1", "@home", "100%", "$HOME", "<b>x", "{y}",
)  # fmt: skip
FILE_NAMES = ("0", "=1", "ü 2", "a,b", "it's", "🐶", "-x", "%s", "{0}", "#7")
FOLDER_NAMES = ("plain", "mit Leerzeichen", "ärger, viel", "it's", "🐕=1")

# fmt: off
# Overrides of train that no run allows.
BROKEN_TRAINING = (
    "optimizer.lr=-1", "optimizer.lr=nan", "optimizer.lr=abc", "optimizer.lr=[1,2]", "optimizer.lr=null",
    "seed=4294967296", "seed=-1", "seed=1.5", "seed=1,2", "phase.epochs=0", "phase.epochs=''", "phase.epochs=1.5",
    "phase.batch_size=0", "phase.monitor=f1", "phase.patience_epochs=-1", "modle=effnetb0", "head=foo",
    "preprocessing=foo", "data.root=null", "data.root=/nowhere", "data.root=''", "data.val_fraction=1.5",
    "data.resize=squash", "data.on_corrupt=hide", "features.dtype=int8", "features.max_gigabytes=-1",
    "features.batch_size=0", "tracking.uri=foo", "tracking.experiment=''", "tracking.patience_minutes=-1",
    "tracking.model=some", "plugins=[nope]", "plugins=nope", "model.weights=/no/such.h5",
    "model.image_size=0", "model.architecture=ResNet50", "checkpoint_steps=0", "rerun=maybe", "stop_on_collapse=3",
    "head.dropout=1", "head.widths=[0]", "head.widths=8", "augment.copies=2", "loss.class_weights=1",
    "preflight.images=0", "preflight.action=go", "optimizer._target_=os.system", "optimizer._target_=dogbreeds.Nope",
    "~optimizer.lr", "~head", "+optimizer.foo=1", "optimizer=[]", "phase=null", "head=null",
    "tracking=null", "optimizer=null", "data=", "=1", "'", "{", "a=b=c", "seed=", "attempt=best", "attempt=frozen,",
    "schedule=cosine schedule.warmup_epochs=-1", "unfreeze.layers=3", "unfreeze.batchnorm=off",
    "checkpoint_dir=/proc/none", "features.dir=/proc/none", "head=linear,mlp", "data=folder,csv",
    "data=csv data.table=/no/such.csv", "data=tfds", "model=effnetb0 model.weights=null data.root=/nowhere",
)
VALID_TRAINING = (
    "seed=1", "seed=2", "head=linear", "head=batchnorm", "optimizer=sgd", "optimizer=adamw optimizer.lr=1e-2",
    "schedule=cosine", "schedule=plateau", "augment=guide augment.copies=2", "loss.class_weights=balanced",
    "preflight=warn", "preflight=none", "baseline=none", "tracking.model=all", "tracking.model=none", "rerun=true",
    "checkpoint_steps=1", "features.dtype=float16", "preprocessing=torch preflight=warn", "stop_on_collapse=true",
    "data.resize=pad", "phase.monitor=macro_f1", "data.on_corrupt=skip data.max_corrupt_fraction=0.9",
    "optimizer.lr=1e3",
)
BROKEN_RUN = (
    "only=1", "+only.foo=1", "run=nope", "run=zzzzzzzz", "run=null", "run=[a]", "run=/no/such.keras", "run=.keras",
    "only.model=zebra",
    "only.modle=miniature", "only.data=[x]", "tracking.uri=foo", "tracking=none", "tracking.experiment=other", "foo=1",
    "'", "run=''",
)
BROKEN = {
    "train": BROKEN_TRAINING,
    "evaluate": (
        *BROKEN_RUN, "tta=3", "split=half", "tta.views=0", "tta.views=x", "mistakes=-1", "seed=-1", "images=/nowhere",
        "images=[a]", "on_corrupt=no", "output=/proc/none/x", "data.root=/nowhere", "split=test images=/tmp",
    ),
    "predict": (
        *BROKEN_RUN, "images=null", "images=/nowhere", "images=''", "images=[]", "top=0", "top=x", "format=xml",
        "batch_size=0", "output=x.pdf", "output=/proc/none/x.csv", "explain=3", "images={a:1}",
    ),
    "compare": (
        "first=null", "second=null", "first=nope", "split=train", "alpha=0", "alpha=2", "classes=0", "format=pdf",
        "output=x.pdf", "ui=null", "second=''", "tracking.uri=foo", "tracking=none", "foo=1", "output=/proc/none/x.csv",
    ),
    "table": (
        "runs=oldest", "format=pdf", "output=/proc/none/x.csv", "output=x.pdf", "only.model=zebra", "foo=1",
        "tracking.experiment=other", "tracking=none", "tracking.uri=foo", "--multirun runs=all,newest",
    ),
    "export": (
        *BROKEN_RUN, "formats=[pdf]", "formats=[]", "formats=keras", "images=0", "images_from=/nowhere",
        "serving=2", "register=9",
        "register=dogs alias=latest", "alpha=1", "output=/proc/none/x", "serving.max_images=0",
    ),
    "cache": (
        "clear=maybe", "features.dir=''", "features.max_gigabytes=0", "foo=1", "features=none", "clear=",
        "--multirun clear=true,false",
    ),
    "extract": (*BROKEN_TRAINING, "shards=0", "shard=1", "shards=2 shard=2", "shard=-1", "shards=x"),
    "why": (
        *BROKEN_TRAINING, "why=1", "why.references=2", "why.seeds=[]", "why.seeds=0", "why.reverts=[a]",
        "why.reverts=[]", "why.reverts=['foo=1']",
        "--multirun why.seeds=[0]", "tracking=none", "phase=lr_range", "why.seeds=[-1]",
    ),
}
# How often each command is drawn.
WEIGHTS = {
    "train": 12, "extract": 2, "evaluate": 4, "predict": 5, "compare": 3, "table": 3, "export": 3, "cache": 2, "why": 1,
}
# fmt: on

_ERROR = re.compile(r"^error: ", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?:](?=\s|$)")
_TEMPORARY = re.compile(r"\.\d+\.part|\..+\.\d+|aside|.*\.tmp|.*\.partial")


class FailedStepError(Exception):
    """A command of the walk did what no command may do."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative for a signal that killed it.
        output: standard output.
        errors: standard error.
    """

    code: int
    output: str
    errors: str


@dataclass
class Step:
    """A command of the walk.

    Attributes:
        name: of the command.
        overrides: as they are typed.
        codes: exit codes that it may have.
        stdin: bytes on its standard input.
        interruption: signal sent to it; None for none.
        delay_seconds: until the signal.
    """

    name: str
    overrides: list[str]
    codes: set[int]
    stdin: bytes = b""
    interruption: signal.Signals | None = None
    delay_seconds: float = 0.0


# --- processes --------------------------------------------------------


Run = Callable[[Step, Path, dict[str, str]], Ended]


def forked(address: str) -> Run:
    """Return a function that runs a step in a process that the server at `address` forks."""

    def run(step: Step, cwd: Path, variables: dict[str, str]) -> Ended:
        with prefork.Process(
            address=address,
            module=f"dogbreeds.{step.name}",
            arguments=tuple(step.overrides),
            cwd=cwd,
            environment=os.environ | variables,
            stdin=step.stdin,
        ) as process:
            timers = []
            if step.interruption is not None:
                timers.append(threading.Timer(step.delay_seconds, process.send_signal, [step.interruption]))
                timers[0].start()
            try:
                output, errors = process.communicate(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise FailedStepError(f"it did not end within {TIMEOUT_SECONDS} s") from error
            finally:
                for timer in timers:
                    timer.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 0)
                raise FailedStepError("it left a process behind")
        return Ended(process.returncode or 0, output, errors)

    return run


def in_this_process(step: Step, cwd: Path, variables: dict[str, str]) -> Ended:
    """Run a step in this process, as `python -m` would."""
    os.environ.update(variables)
    os.chdir(cwd)
    arguments, streams = sys.argv, (sys.stdin, sys.stdout, sys.stderr)
    sys.argv = [step.name, *step.overrides]
    sys.stdin = io.TextIOWrapper(io.BytesIO(step.stdin))
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    sys.stdout, sys.stderr = output, errors
    code = 0
    try:
        runpy.run_module(f"dogbreeds.{step.name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=errors)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv, (sys.stdin, sys.stdout, sys.stderr) = arguments, streams
    texts = []
    for stream in (output, errors):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Ended(code, *texts)


# --- the world --------------------------------------------------------


class World:
    """The folders that commands read and write, and what may be done to them between two commands.

    Args:
        folder: holds everything.
        rng: of the images.
    """

    def __init__(self, folder: Path, rng: random.Random):
        self.folder = folder
        self.home, self.cache, self.output = (folder / name for name in ("home", "cache", "out put"))
        for path in (self.home, self.cache, self.output):
            path.mkdir(parents=True, exist_ok=True)
        self.roots: list[Path] = []
        for number in range(4):
            root = folder / f"photos {number}" / rng.choice(FOLDER_NAMES)
            self._draw(root, rng.sample(CLASS_NAMES, 2 + number), rng)
            self.roots.append(root)
        # Photos that were damaged or removed, so that a command may refuse the folder.
        self.changed_roots: set[Path] = set()
        self.is_store_damaged = False

    @property
    def variables(self) -> dict[str, str]:
        return {"DOGBREEDS_HOME": str(self.home), "DOGBREEDS_CACHE": str(self.cache)}

    def files(self, pattern: str, root: Path | None = None) -> list[Path]:
        """List the files whose names match, the oldest first."""
        found = [path for path in (root or self.folder).rglob(pattern) if path.is_file()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, str(path)))

    def signatures(self) -> dict[Path, tuple[int, int]]:
        """Return time and size of every file."""
        found = {}
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    status = path.stat()
                    found[path] = (status.st_mtime_ns, status.st_size)
        return found

    def _draw(self, root: Path, names: list[str], rng: random.Random) -> None:
        for label, name in enumerate(names):
            for split, count in (("train", 6), ("val", 3), ("test", 2)):
                folder = root / split / name
                folder.mkdir(parents=True)
                for number, file in enumerate(rng.sample(FILE_NAMES, count)):
                    stream = split if split != "test" else "test"
                    suffix, kind = rng.choice(((".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP")))
                    Image.fromarray(drawn_dogs.draw(stream, label, number)).save(folder / f"{file}{suffix}", kind)


Damage = Callable[[World, random.Random], str | None]


def _overwrite(path: Path, rng: random.Random) -> str:
    """Truncate a file, replace it by nonsense, or flip some of its bytes."""
    content = path.read_bytes()
    how = rng.choice(("truncated", "emptied", "replaced by text", "flipped"))
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "emptied":
        content = b""
    elif how == "replaced by text":
        content = b"not what it was\n"
    else:
        position = rng.randrange(max(len(content), 1))
        content = (
            content[:position]
            + bytes(255 - byte for byte in content[position : position + 16])
            + content[position + 16 :]
        )
    path.write_bytes(content)
    return how


def _damage_file(pattern: str, place: str) -> Damage:
    """Return a damage that removes or damages one of the files that match."""

    def damage(world: World, rng: random.Random) -> str | None:
        found = world.files(pattern, getattr(world, place))
        if not found:
            return None
        path = rng.choice(found)
        how = "removed"
        if rng.random() < 0.4:
            path.unlink()
        else:
            how = _overwrite(path, rng)
        return f"{path} {how}"

    return damage


def _swap_files(pattern: str) -> Damage:
    """Return a damage that replaces one of the files that match by another."""

    def damage(world: World, rng: random.Random) -> str | None:
        found = world.files(pattern, world.home)
        if len(found) < 2:
            return None
        first, second = rng.sample(found, 2)
        shutil.copyfile(first, second)
        return f"{first} copied to {second}"

    return damage


def _change_photo(world: World, rng: random.Random) -> str | None:
    root = rng.choice(world.roots)
    photos = world.files("*", root)
    if not photos:
        return None
    world.changed_roots.add(root)
    path = rng.choice(photos)
    how = rng.choice(("removed", "added", "damaged", "not an image", "a link"))
    if how == "removed":
        path.unlink()
    elif how == "added":
        shutil.copyfile(path, path.with_name(f"neu {rng.randrange(100)}{path.suffix}"))
    elif how == "damaged":
        how = _overwrite(path, rng)
    elif how == "not an image":
        path.with_name("=note.txt").write_text("no image")
    else:
        path.with_name(f"link{path.suffix}").unlink(missing_ok=True)
        path.with_name(f"link{path.suffix}").symlink_to("/etc/hostname")
    return f"{path}: {how}"


def _remove_folder(place: str, pattern: str) -> Damage:
    """Return a damage that removes one of the folders that match."""

    def damage(world: World, rng: random.Random) -> str | None:
        found = sorted(path for path in getattr(world, place).glob(pattern) if path.is_dir())
        if not found:
            return None
        path = rng.choice(found)
        shutil.rmtree(path)
        return f"{path} removed"

    return damage


def _remove_store(world: World, rng: random.Random) -> str | None:
    store = world.home / "mlruns/mlflow.db"
    if not store.exists():
        return None
    how = "removed"
    if rng.random() < 0.5:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{store}{suffix}").unlink(missing_ok=True)
    else:
        how = _overwrite(store, rng)
        world.is_store_damaged = True
    return f"{store} {how}"


DAMAGES: tuple[Damage, ...] = (
    _damage_file("model.keras", "home"),
    _damage_file("head*.h5", "home"),
    _damage_file("*.npz", "home"),
    _damage_file("*.npz", "home"),
    _damage_file("artifacts/config/config.yaml", "home"),
    _damage_file("*.json", "home"),
    _damage_file("*.yaml", "home"),
    _damage_file("*.npy", "cache"),
    _damage_file("*.json", "cache"),
    _damage_file("*", "output"),
    _swap_files("model.keras"),
    _swap_files("head*.h5"),
    _swap_files("val.npz"),
    _change_photo,
    _change_photo,
    _remove_folder("home", "multirun/checkpoints/*"),
    _remove_folder("home", "mlruns/artifacts/*/artifacts"),
    _remove_folder("home", "mlruns/artifacts/*/artifacts/*"),
    _remove_folder("cache", "*"),
    _remove_folder("output", "*"),
)


@contextlib.contextmanager
def _locked_store(world: World, seconds: float) -> Iterator[None]:
    """Hold the store's write lock, for at most so many seconds."""
    connection = sqlite3.connect(world.home / "mlruns/mlflow.db", check_same_thread=False, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(seconds, connection.close)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


# --- steps ------------------------------------------------------------


def quoted(value: object) -> str:
    """Return a value in Hydra's quotes."""
    return "'" + str(value).replace("'", "\\'") + "'"


def draw_step(world: World, rng: random.Random, can_signal: bool) -> Step:
    """Draw a command with its overrides; some of them broken."""
    name = rng.choices(list(WEIGHTS), WEIGHTS.values())[0]
    step = _DRAW.get(name, _draw_reader)(name, world, rng)
    if rng.random() < 0.3:
        broken = rng.choice(BROKEN[name])
        # A saved network needs no store.
        is_unused = broken.startswith("tracking") and any(".keras" in override for override in step.overrides)
        step.overrides += broken.split(" ")
        step.codes = step.codes if is_unused else {1}
    elif can_signal and name in ("train", "extract", "why") and rng.random() < 0.3:
        step.interruption = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
        step.delay_seconds = rng.uniform(0.5, 12)
        # In the last moment Python has restored the default handlers. A shell sees 130 or 143 then too.
        step.codes |= {-step.interruption, 128 + step.interruption} - {128 + signal.SIGKILL}
    return step


def _first_training(world: World, number: int) -> Step:
    return Step("train", [*_data(world.roots[number]), "phase=frozen", "phase.epochs=2"], {0})


def _data(root: Path) -> list[str]:
    return ["data=folder", f"data.root={quoted(root)}", "phase.batch_size=4"]


def _draw_training(name: str, world: World, rng: random.Random) -> Step:
    root = rng.choice(world.roots)
    phase = rng.choices(("frozen", "finetune", "lr_range"), (6, 3, 1))[0] if name == "train" else "frozen"
    overrides = [*_data(root), f"phase={phase}"]
    codes = {1} if root in world.changed_roots else set()
    if phase == "lr_range":
        overrides.append("phase.steps=20")
    else:
        overrides.append(f"phase.epochs={rng.choice((1, 2, 3))}")
    if phase == "finetune":
        overrides.append(f"unfreeze.layers={rng.choice((3, 10))}")
        # There may be no parent.
        codes.add(1)
    for extra in rng.sample(VALID_TRAINING, rng.choice((0, 0, 1, 2))):
        overrides += extra.split(" ")
        # The setting may not be one of the chosen option, or contradict the other.
        codes.add(1)
    if name == "train":
        chance = rng.random()
        if chance < 0.15:
            overrides += ["--multirun", f"seed={rng.choice(('0,1', 'range(0,0)', '3,abc'))}"]
            codes.add(1)
        elif chance < 0.3:
            overrides += ["tracking=none"]
            if phase == "finetune" and (parents := world.files("run.json", world.home)):
                overrides.append(f"phase.parent={quoted(rng.choice(parents).parent)}")
        if not chance < 0.3 or chance < 0.15:
            overrides.append("tracking.system_metrics_seconds=0")
    elif name == "extract" and rng.random() < 0.5:
        overrides += ["--multirun", "shards=2", "shard=0,1"]
    elif name == "why":
        overrides += ["why.seeds=[0]", "why.reverts=['head=linear']"]
        codes.add(1)
    return Step(name, overrides, codes | {0})


def _draw_reader(name: str, world: World, rng: random.Random) -> Step:
    """Draw a command that reads runs, or the cache."""
    overrides: list[str] = []
    saved = world.files("*.keras", world.home)
    root = rng.choice(world.roots)
    choices = ["latest", "best", *(quoted(path) for path in saved[-2:])]
    run = rng.choice(choices)
    if name in ("evaluate", "predict", "export"):
        overrides.append(f"run={run}")
        if run == "best":
            overrides.append(f"only.data={quoted(root.name)}")
    stdin = b""
    codes = {0, 1}
    if name == "predict":
        codes |= {2}
        chance = rng.random()
        if chance < 0.1:
            stdin = b"".join(path.read_bytes() for path in world.files("*", root)[:1])
            overrides.append("images=-")
        elif chance < 0.3:
            overrides.append(f"images=[{','.join(quoted(path) for path in world.files('*', root)[:3])}]")
        else:
            overrides.append(f"images={quoted(root)}")
        overrides += rng.choice(([], ["top=1"], ["format=jsonl"], ["format=csv"], ["explain=true"], ["batch_size=2"]))
        _add_output(overrides, world, rng, (".csv", ".jsonl", ".txt"))
    elif name == "evaluate":
        images = [f"images={quoted(root / 'test')}"]
        # A file needs images.
        overrides += images if run in choices[2:] else rng.choice(([], ["split=val"], ["tta.views=2"], images))
        _add_output(overrides, world, rng, ("",))
    elif name == "export":
        formats = rng.choice(("[keras]", "[keras,savedmodel]", "[onnx]", "[tflite]"))
        overrides += [f"formats={formats}", "images=3"]
        images_from = [f"images_from={quoted(root)}"]
        overrides += images_from if run in choices[2:] else rng.choice(([], images_from, ["register=dogs"]))
        _add_output(overrides, world, rng, ("",))
    elif name == "compare":
        overrides += [f"first={rng.choice(('latest', 'best'))}", f"second={rng.choice(('latest', 'best'))}"]
        overrides.append(f"only.data={quoted(root.name)}")
        overrides += rng.choice(([], ["split=val"], ["format=markdown"], ["format=csv"], ["format=html"]))
        _add_output(overrides, world, rng, (".csv", ".md", ".html", ".txt"))
    elif name == "table":
        overrides += rng.choice(([], ["runs=all"], ["format=csv"], ["format=html"], ["only.model=miniature"]))
        _add_output(overrides, world, rng, (".csv", ".md", ".html", ".txt"))
    elif name == "cache":
        overrides += rng.choice(([], [], ["clear=true"]))
        # What runs keep is listed from the store.
        codes = {0, 1} if world.is_store_damaged else {0}
    return Step(name, overrides, codes, stdin)


def _add_output(overrides: list[str], world: World, rng: random.Random, suffixes: tuple[str, ...]) -> None:
    if rng.random() < 0.6:
        name = rng.choice(("a b", "ü, é", "=1", "🐕"))
        overrides.append(f"output={quoted(world.output / f'{name}{rng.choice(suffixes)}')}")


_DRAW = dict.fromkeys(("train", "extract", "why"), _draw_training)


# --- checks -----------------------------------------------------------


def check_ended(step: Step, ended: Ended) -> None:
    """Check exit code and message of a command."""
    everything = ended.output + ended.errors
    if "Traceback (most recent call last)" in everything:
        raise FailedStepError("it ended in a traceback")
    if ended.code not in step.codes:
        raise FailedStepError(f"its exit code was {ended.code}, and not one of {sorted(step.codes)}")
    messages = [line for line in ended.errors.splitlines() if _ERROR.match(line)]
    # A signal may arrive after the message.
    if step.interruption is None and (ended.code == 1) != bool(messages):
        raise FailedStepError(f"its exit code was {ended.code}, with {len(messages)} error messages")
    if ended.code == 1:
        message = ended.errors[ended.errors.rindex("error: ") :]
        if len(_SENTENCE_END.findall(message.removeprefix("error: "))) < 3:
            raise FailedStepError("its error message has fewer than three sentences")


def check_files(before: dict[Path, tuple[int, int]], world: World, was_killed: bool) -> None:
    """Check that a command left no temporary file, and that each file that it wrote can be read."""
    for path, signature in world.signatures().items():
        if before.get(path) == signature:
            continue
        if any(_TEMPORARY.fullmatch(part) for part in path.relative_to(world.folder).parts):
            if was_killed:
                continue
            raise FailedStepError(f"it left the temporary file {path}")
        try:
            _read(path)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, sqlite3.DatabaseError, csv.Error) as error:
            raise FailedStepError(f"it left {path}, which cannot be read: {error!r}") from error


def _read(path: Path) -> None:
    """Read a file completely, by its suffix."""
    suffix = path.suffix
    if suffix == ".json":
        json.loads(path.read_text())
    elif suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
    elif suffix == ".csv":
        with path.open(newline="") as file:
            widths = {len(row) for row in csv.reader(file, strict=True) if row}
        # With format=html it holds a page.
        if len(widths) > 1 and "table" not in path.name and not path.read_text().startswith("<"):
            raise ValueError(f"rows of {widths} columns")
    elif suffix in (".npz", ".keras"):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")
    elif suffix == ".npy":
        np.load(path, mmap_mode="r")
    elif suffix == ".h5":
        import h5py

        h5py.File(path).close()
    elif suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif suffix == ".html":
        text = path.read_text()
        # With format=csv it holds that.
        if text.startswith("<") and not text.rstrip().endswith("</html>"):
            raise ValueError("its end is missing")
    elif suffix == ".yaml":
        import yaml

        yaml.safe_load(path.read_text())


def check_store(world: World, known: set[str], was_killed: bool) -> set[str]:
    """Check that the store is intact, and that no run of a command that has ended is still RUNNING.

    Returns:
        The runs that killed commands left.
    """
    store = world.home / "mlruns/mlflow.db"
    if not store.exists():
        return set()
    try:
        with contextlib.closing(sqlite3.connect(store)) as connection:
            running = {run for (run,) in connection.execute("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")}
    except sqlite3.DatabaseError:
        # It was damaged, or has no tables yet.
        return set()
    if not was_killed and running - known:
        raise FailedStepError(f"it left the run {', '.join(running - known)} RUNNING")
    return running


# --- the walk ---------------------------------------------------------


def walk(
    steps: int,
    seed: int,
    folder: Path,
    run: Run,
    one_process: bool,
    keep_going: bool = False,
) -> None:
    """Run the walk.

    Args:
        steps: number of commands.
        seed: of everything that is drawn.
        folder: holds all files.
        run: runs a command.
        one_process: whether all commands run in one process: without signals, and without damage to the open store.
        keep_going: print a failure and go on, instead of raising it.

    Raises:
        FailedStepError: a command did what it may not do. The message has all steps up to it.
    """
    world = World(folder, random.Random(f"{seed}"))
    lines = [f"seed {seed}, in {folder}"]
    running: set[str] = set()
    for number in range(steps):
        rng = random.Random(f"{seed}/{number}")
        # The first commands make runs for the others.
        has_runs = number >= 3
        if has_runs and rng.random() < 0.4:
            damages = DAMAGES if one_process else (*DAMAGES, _remove_store)
            lines.append(f"{number:4}  damage: {rng.choice(damages)(world, rng)}")
        step = draw_step(world, rng, can_signal=not one_process) if has_runs else _first_training(world, number)
        store = world.home / "mlruns/mlflow.db"
        lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if rng.random() < 0.06 and store.exists() and not one_process and "tracking=none" not in step.overrides:
            lock = _locked_store(world, rng.choice((2.0, 60.0)))
            lines.append(f"{number:4}  the store is locked")
            if step.name not in ("cache", "extract"):
                step.overrides.append("tracking.patience_minutes=0.05")
            step.codes.add(1)
        typed = shlex.join(["python", "-m", f"dogbreeds.{step.name}", *step.overrides])
        if step.interruption is not None:
            typed += f"  # {step.interruption.name} after {step.delay_seconds:.1f} s"
        lines.append(f"{number:4}  {typed}")
        before = world.signatures()
        started = time.monotonic()
        ended = Ended(0, "", "")
        try:
            with lock:
                ended = run(step, world.output, world.variables)
            print(f"{number:4}  {ended.code:4}  {time.monotonic() - started:5.1f} s  {step.name}", flush=True)
            if keep_going and ended.code == 1:
                print(f"      {typed}\n      {ended.errors[ended.errors.rfind('error: ') :]}", flush=True)
            check_ended(step, ended)
            was_killed = ended.code == -signal.SIGKILL
            check_files(before, world, was_killed)
            running = check_store(world, running, was_killed)
        except FailedStepError as error:
            steps_text = "\n".join(lines)
            failure = FailedStepError(
                f"step {number} of seed {seed}: {error}\n{steps_text}\n--- output\n{ended.output[-4000:]}"
                f"\n--- standard error\n{ended.errors[-6000:]}"
            )
            if not keep_going:
                raise failure from error
            print(f"{error}\n{lines[-1]}\n{ended.output[-3000:]}{ended.errors[-5000:]}\n=======", flush=True)


def main() -> None:
    """Run a walk as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=300)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--one-process", action="store_true")
    parser.add_argument("--keep-going", action="store_true")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="walk-") as name:
        folder = Path(name)
        if typed.one_process:
            walk(
                typed.steps, typed.seed, folder / "walk", in_this_process, one_process=True, keep_going=typed.keep_going
            )
            return
        server = prefork.start_server(folder / "socket", folder / "log")
        try:
            walk(
                typed.steps,
                typed.seed,
                folder / "walk",
                forked(str(folder / "socket")),
                one_process=False,
                keep_going=typed.keep_going,
            )
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    try:
        main()
    except FailedStepError as failure:
        sys.exit(f"{failure}")
