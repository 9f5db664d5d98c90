"""The files in conf/: each begins with what it is and with a command that works."""

import re
import shlex
from pathlib import Path

import pytest

from dogbreeds.core.paths import config_folder
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.run import GROUPS

# Hydra warns of launchers that its plugins register under the same names.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra:UserWarning")
CONF = config_folder()
# Options of groups and the configs of commands. Files in conf/hydra/ that only format output have no command.
FILES = sorted(
    path for path in CONF.rglob("*.yaml") if path.parent.name not in ("help", "hydra_logging", "job_logging")
)


def first_values(overrides: list[str]) -> list[str]:
    """Reduce each override to one job: the first of several values. Options of Hydra are left out."""
    plain = [override for override in overrides if "=" in override and "interval(" not in override]
    reduced = [re.sub(r"=range\(.*\)$", "=0", override) for override in plain]
    reduced = [re.sub(r"=choice\((\w+).*", r"=\1", override) for override in reduced]
    return [re.sub(r"^([^=]+=[^,\[\](]+),.*", r"\1", override) for override in reduced]


def yaml_target(path: Path) -> str:
    """Return the name of the class that an option of a group names, without its module."""
    (target,) = re.findall(r"^ *_target_: (\S+)$", path.read_text(), re.MULTILINE)
    return target.rpartition(".")[2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_header_of_a_config_says_what_it_is_and_how_to_run_it(path: Path) -> None:
    header = [line for line in path.read_text().splitlines()[:20] if line.startswith("#") and "@package" not in line]
    assert re.match(r"# [A-Z].*[a-z]", header[0])
    typed = re.findall(r"^# Run: python -m dogbreeds\.(\w+)(.*)$", "\n".join(header).replace("\\\n#", ""), re.MULTILINE)
    assert typed
    group = path.parent.name
    for command, arguments in typed:
        config = compose_config(command, first_values(shlex.split(arguments)))
        if group in GROUPS:
            assert from_config(config).parameters()[group] == yaml_target(path)
