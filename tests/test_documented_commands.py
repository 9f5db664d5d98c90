"""Every command in README and in the documentation's pages runs, reduced to seconds by the tables below.

A shell runs each line as it is written, in a folder that looks like a clone of the project after `make setup`. Commands
that differ only in numbers run once.
"""

import os
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest

from tests.clone import Clone
from tests.documentation import README, ROOT, TEXTS, blocks, documented_lines, generated, shell_lines
from tests.tiers import tiered

# What is replaced in a line, since it needs what a test does not have.
REPLACED = (
    # Where the size of the model does not matter; alone, `model=effnetb4` is run as B0, with random weights.
    (r"model=effnetb\d (?=\S)|(?<=lr_collapse )model=effnetb\d", "model=miniature "),
    (r"model=effnetb\d$", "model=effnetb0"),
    (r"only\.model=effnetb0", "only.model=miniature"),
    (r"MODEL=effnetb0(.*) WEIGHTS=\S+ SEEDS=\S+", r"MODEL=miniature\1"),
    # Neither a download of 778 MiB, nor a run on these images.
    (r" data=stanford_dogs", " data=miniature"),
    (r"only\.data=stanford_dogs", "only.data=folder"),
    # Neither Slurm nor a cluster of Ray.
    (r"hydra/launcher=submitit_slurm", "hydra/launcher=submitit_local"),
    (r" hydra\.launcher\.partition=gpu", ""),
    (r"hydra\.launcher\.ray\.init\.address=auto", "hydra.launcher.ray.init.num_cpus=2"),
    (r"LAUNCHER=ray", "LAUNCHER=joblib"),
    # No GPU.
    (r"strategy=mirrored$", "strategy=mirrored 'strategy.devices=[CPU:0,CPU:1]'"),
    (r"strategy\.devices=2", "'strategy.devices=[CPU:0,CPU:1]'"),
    # A folder of the test; `{first}` and `{second}` are its recorded runs.
    (r"features\.dir=/data/features", "features.dir=features"),
    (r"\b(run|first)=[0-9a-f]{8}\b", r"\1={first}"),
    (r"\bsecond=[0-9a-f]{8}\b", "second={second}"),
    (r"photos/\*\.jpg", "new/*.jpg"),
    (r"(judge run=.*) tracking\.uri=\S+", r"\1"),
    # Two of several jobs.
    (r"=(\w[\w.-]*,\w[\w.-]*)(,\w[\w.-]*)+", r"=\1"),
    (r"shards=8 'shard=range\(8\)'", "shards=2 'shard=range(2)'"),
    (r"why\.seeds=\[0,1\]' phase\.epochs=5", "why.seeds=[0]' phase.epochs=1"),
    (r"ATTEMPTS=torch_pixels,lr_collapse\b", "ATTEMPTS=torch_pixels,frozen"),
    (r"OPTIONS=phase.epochs=6", "OPTIONS=phase.epochs=1"),
    (r"make (ui|docs-serve)$", r"make \1 PORT={port} DOCS_PORT={port}"),
    (r"make server.*", "make server PORT={port}"),
)
DRAWN = "data.classes=4 data.train_per_class=16 data.val_per_class=4 data.test_per_class=4"
RANDOM = "model.weights=null model.image_size=32"
# What is added to a line that matches, except for settings that it has.
ADDED = (
    (r"dogbreeds\.(train|extract|why)\b.*(model=(?!miniature)|attempt=resnet50)(?!.*data=)", "data=miniature"),
    (r"dogbreeds\.(train|extract|why)\b.*(model=(?!miniature)|attempt=resnet50)", RANDOM),
    (r"dogbreeds\.(train|extract|why)\b(?!.*data=folder)", DRAWN),
    (r"dogbreeds\.(train|why)\b(?!.*phase=lr_range)", "phase.epochs=1"),
    (r"dogbreeds\.train\b.*phase=lr_range", "phase.steps=20"),
    (r"dogbreeds\.train\b(?!.*tracking=none)", "tracking.system_metrics_seconds=0"),
    (r"dogbreeds\.train\b.* model=(?!miniature)(?!.*finetune)", "tracking.model=none"),
    (r"dogbreeds\.train\b.*hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"),
    (r"dogbreeds\.why\b", "why.seeds=[0]"),
    (r"dogbreeds\.export\b", "images=5"),
    (r"dogbreeds\.export\b.+", "'formats=[keras]'"),
    (r"dogbreeds\.probe\b", f"{RANDOM} tracking.system_metrics_seconds=0 preflight=none"),
    (r"dogbreeds\.audit\b", f"{RANDOM} preflight=none"),
    (r"dogbreeds\.pretrain\b", "images_per_class=1 validation_images_per_class=1 epochs=1 weights=own.weights.h5"),
    (r"make table\b(?!.*DATA=)", f"'OPTIONS=phase.epochs=1 {DRAWN}'"),
    (r"make table\b.*DATA=", "OPTIONS=phase.epochs=1"),
)
# The exit code, and a fact that is printed: the first that matches.
PRINTED = (
    (r"--help", 0, r"optimizer: adam, adamw"),
    (r"--cfg job", 0, r"^optimizer:$"),
    (r"train preprocessing=torch data", 1, r"error: preprocessing\.mode=torch .*Set preprocessing=native"),
    (r"phase=lr_range", 0, r"optimizer\.lr="),
    # Its jobs print into files.
    (r"hydra/launcher=submitit", 0, r""),
    (r"dogbreeds\.train", 0, r"\bbest  val +[\d.]+ %"),
    (r"dogbreeds\.extract", 0, r"features of train"),
    (r"dogbreeds\.why .*why\.cells=removed", 0, r"images gained and lost"),
    (r"dogbreeds\.why", 0, r"verdict"),
    (r"dogbreeds\.evaluate", 0, r"^accuracy +[\d.]+ %"),
    (r"dogbreeds\.compare .*output=(\S+)", 0, r""),
    (r"dogbreeds\.compare", 0, r"^change  "),
    (r"dogbreeds\.predict .*format=jsonl", 0, r'^\{"image": '),
    (r"dogbreeds\.predict .*output=", 0, r""),
    (r"dogbreeds\.predict", 0, r"breed \d +[\d.]+ %"),
    (r"dogbreeds\.judge .*output=", 0, r"verdict"),
    (r"dogbreeds\.judge .*format=json", 0, r'"verdict": "collapsed"'),
    (r"dogbreeds\.judge", 0, r"(collapsed|learned|undecided|never learned): "),
    (r"dogbreeds\.probe .*output=", 0, r""),
    (r"dogbreeds\.probe", 0, r"^ effnetb0 .* M "),
    (r"dogbreeds\.audit", 0, r"near-duplicates"),
    (r"dogbreeds\.export", 0, r"(keras|onnx) .* yes$"),
    (r"dogbreeds\.table .*output=", 0, r""),
    (r"dogbreeds\.table", 0, r"Miniature"),
    (r"dogbreeds\.cache .*clear=(?!true)|make clear KINDS=", 0, r"\d+ items"),
    (r"(dogbreeds\.cache|make (cache|clear))", 0, r"cached arrays"),
    (r"dogbreeds\.pretrain", 0, r"own\.weights\.h5"),
    (r"make table", 0, r"frozen"),
    (r"make help", 0, r"^pictures +draw"),
)
SERVERS = r"make (ui|server|docs-serve)\b"
# These run on results of other runs: those of the fixture `recorded`.
NEEDS_RUNS = r"dogbreeds\.(evaluate|compare|export|predict|table)\b|dogbreeds\.judge run="
RUN_BY_CI = ".ci/run runs it for every change"
# Lines that another test runs, or runs on a tiny input.
ELSEWHERE = (
    (
        r"python -m dogbreeds\.(soup\b.*|train phase=soup .*)",
        "soup::soup_of_fine_tunes_is_a_run_whose_network_measures_what_it_recorded",
    ),
    (
        r"(export MLFLOW_TRACKING_URI|mlflow models serve|until curl|echo .*curl ).*",
        "serving::served_model_predicts_as_the_trained_network_and_refuses_bad_requests",
    ),
    (
        r"python -m dogbreeds\.ui\b.*",
        "ui::page_answers_under_the_name_that_its_link_has_and_ends_with_ctrl_c",
    ),
    (r"python -m dogbreeds.train --multirun optimizer.lr=#", "train::learning_rate_sweep_collapses_and_learns"),
    (
        r"python -m dogbreeds.train tracking.uri=http://server:#",
        "server::a_parallel_sweep_loses_nothing_when_the_server_is_killed",
    ),
    (r"(DOGBREEDS_REAL_DATA=\S+ )?make faults( SMALL=#)?", "bench::faults_judges_every_kind_as_expected"),
    (r"make audit-study", "audit::audit_study_reports_copies_and_both_kinds_of_labels"),
    (r"python -m tests.bench.faults\b.*", "fault_study::command_line_names_steps_backbones_and_sizes"),
    (r"make fuzz", "bench::fuzz_reports_every_kind_and_no_crash"),
    (r"make bench( FULL=#)?", "bench::speed_measures_every_way_and_resumes"),
    (r"make bench-gpu", "bench::gpu_checks_hold_on_a_processor"),
    (r"make bench-grid", "bench::grid_costs_every_kind"),
    (r"make bench-memory|python tests/bench/memory.py #", "bench::memory_measures_the_peak_of_an_attempt"),
    (r"make bench-predict", "bench::predict_measures_rates_and_the_peak"),
    (r"make bench-serve", "bench::serve_measures_answers_and_refusals"),
    (r"make wheel", "wheel::wheel_holds_the_package_and_its_configs"),
    (r"make notebooks", "notebooks::notebook_gives_the_same_kinds_of_outputs_when_it_is_executed_again"),
    (r"python -m dogbreeds.train .*data=tfds .*", "listed_images::tfds_opens_a_prepared_data_set"),
    (
        r"python -m dogbreeds.train --config-dir mydogs/conf .*",
        "plugins::parts_in_the_documentation_work_as_they_are_written",
    ),
    (
        r"python -m dogbreeds.train model=tinynet .*",
        "plugin_example::tests_of_the_example_pass_with_the_installed_plugin",
    ),
    (
        r"python -m dogbreeds.train tracking=none phase=finetune .*",
        "saved_run::a_fine_tune_starts_from_the_folder_or_a_file_in_it",
    ),
    (r"cd /tmp && .*", "wheel::train_of_the_wheel_records_in_the_current_folder"),
)
# Lines that no test runs, with the reason.
NOT_RUN = (
    (r"mlflow migrate-filestore .*", "needs a file store of MLflow 2, which MLflow no longer writes"),
    (r"make (setup EXTRAS=dev|check|docs|test|test-slow)", RUN_BY_CI),
    (r"make pretrain", "it is python -m dogbreeds.pretrain"),
    (r"\.ci/run", "it runs these tests"),
    (r"make test-(long|real)", "it runs tests, and needs three versions of Python or real images"),
    (
        r"make setup(?! EXTRAS=dev).*|pip install .*|/tmp/try/bin/pip .*",
        "it downloads packages; what it installs is tested in test_makefile",
    ),
    (r"source \.venv/bin/activate|python -m venv /tmp/try", "it is Python's own"),
)


def normalized(line: str) -> str:
    """Return a line with # for numbers, lists of numbers and ids of runs."""
    number = r"(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    line = re.sub(r"=[0-9a-f]{8}\b", "=#", line)
    return re.sub(rf"(?<![\w#]){number}(?:,{number})*(?![\w.])", "#", line)


def distinct() -> dict[str, bool]:
    """Return the lines of all pages that differ in more than numbers as they are run, and whether README has them."""
    readme = list(documented_lines(README))
    lines = [line for path in TEXTS for line in documented_lines(path)]
    lines += [line for text in generated.pages().values() for line in shell_lines(text)]
    chosen = {normalized(reduced(line)): line for line in reversed([*readme, *lines])}
    return {line: line in readme for line in sorted(chosen.values())}


def matching(line: str, table: tuple[tuple[str, str], ...]) -> list[str]:
    """Return what a table has for a line."""
    return [value for pattern, value in table if re.fullmatch(pattern, normalized(line))]


def reduced(line: str, **values: object) -> str:
    """Return a line as it is run here."""
    for pattern, replacement in REPLACED:
        line = re.sub(pattern, replacement, line)
    if not re.search(r"--help|--cfg", line):
        for pattern, words in ADDED:
            if re.search(pattern, line):
                given = re.findall(r"[\w./]+(?==)", line)
                new = [word for word in shlex.split(words) if word.split("=")[0] not in given]
                line = " ".join([line, *map(shlex.quote, new)])
    return re.sub(r"\{(first|second|port)\}", lambda match: str(values.get(match[1], match[0])), line)


def frozen_run(line: str) -> str | None:
    """Return the command whose run a fine-tune starts from."""
    if not re.search(r"(dogbreeds\.(train|why|extract) .*|ATTEMPTS=)finetune", line):
        return None
    line = re.sub(r"dogbreeds\.(why|extract)", "dogbreeds.train", line)
    line = re.sub(r"ATTEMPTS=\S+", "ATTEMPTS=frozen", line)
    line = re.sub(r"finetune_\d+", "frozen", line).replace("phase=finetune", "phase=frozen")
    return re.sub(r" '?(unfreeze|shards?|why|mix|ema)[.\w]*=\S+", "", line)


LINES = distinct()
# README's other lines are in the slow tier.
LONG_LINES = {
    # Half a minute each; `ui` has tests of its own.
    "make table",
    "make ui",
    # B0, whose graphs take long to build.
    "python -m dogbreeds.train model=effnetb0 data=folder data.root=photos",
    "python -m dogbreeds.train model=effnetb0 data=folder data.root=photos phase=finetune",
}
RUN_HERE = [line for line in LINES if not matching(line, ELSEWHERE) + matching(line, NOT_RUN)]
SLOW = [(line,) for line in RUN_HERE if LINES[line] and line not in LONG_LINES]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, shared_cache: Path) -> Clone:
    """A clone with two runs, whose saved network is `model.keras`."""
    environment = os.environ | {"DOGBREEDS_CACHE": str(shared_cache)}
    clone = Clone(tmp_path_factory.mktemp("recorded") / "clone", empty_store, environment)
    code, output = clone.run(
        "python -m dogbreeds.train --multirun data=folder data.root=photos head=linear,mlp phase.epochs=2"
        " tracking.model=all"
    )
    assert code == 0, output
    network, *_ = (clone.folder / "mlruns").rglob("model.keras")
    shutil.copy(network, clone.folder)
    return clone


@pytest.fixture
def clone(tmp_path: Path, empty_store: Path, shared_cache: Path, ray_environment: dict[str, str]) -> Clone:
    environment = os.environ | ray_environment | {"DOGBREEDS_CACHE": str(shared_cache)}
    return Clone(tmp_path / "clone", empty_store, environment)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("line", tiered([(line,) for line in RUN_HERE], slow=SLOW))
def test_command_of_the_documentation_runs(line: str, request: pytest.FixtureRequest, unused_port: int) -> None:
    needs_runs = re.search(NEEDS_RUNS, line)
    clone = request.getfixturevalue("recorded" if needs_runs else "clone")
    first, second = clone.run_ids() if needs_runs else ("", "")
    typed = reduced(line, first=first, second=second, port=unused_port)
    if re.match(SERVERS, line):
        assert "<html" in clone.read_page(typed, unused_port)
        return
    parent = frozen_run(typed)
    if parent:
        code, output = clone.run(parent)
        assert code == 0, output
    code, output = clone.run(typed)
    expected, fact = next((code, fact) for pattern, code, fact in PRINTED if re.search(pattern, typed))
    assert code == expected, output
    assert re.search(fact, output, re.MULTILINE), output
    assert "Traceback" not in output
    # Each job of a sweep has recorded its result.
    if "--multirun" in typed and "dogbreeds.train" in typed:
        assert len(clone.run_ids()) >= 2
    file = re.search(r"output=(\S+)", line)
    assert file is None or (clone.folder / file[1]).stat().st_size > 0


@pytest.mark.parametrize("block", [block for text in TEXTS.values() for block in blocks(text, "python")])
@pytest.mark.long
def test_python_of_the_documentation_runs(block: str, recorded: Clone) -> None:
    (recorded.folder / "block.py").write_text(block)
    code, output = recorded.run("python block.py")
    assert code == 0, output


def test_every_command_of_the_documentation_is_run_or_has_a_reason(collected_tests: dict[str, list[set[str]]]) -> None:
    """A new command that no table has fails here."""
    assert len(RUN_HERE) > 100
    assert len(SLOW) >= 2
    for line in LINES:
        assert len(matching(line, ELSEWHERE) + matching(line, NOT_RUN)) <= 1, line
    for line in RUN_HERE:
        assert any(re.search(pattern, line) for pattern, *_ in PRINTED) or re.match(SERVERS, line), line
    ci = (ROOT / ".ci/run").read_text()
    for line in LINES:
        if RUN_BY_CI in matching(line, NOT_RUN):
            assert re.search(rf"\b{line.removeprefix('make ')}\b", ci), line
    files = {name.split("::")[0] for name in collected_tests}
    assert [name for _, name in ELSEWHERE if name.split("::")[0] in files and name not in collected_tests] == []
