"""README: the tests of each promise exist in the tiers that every change passes, and its make targets exist."""

import re

import pytest

from dogbreeds.core.paths import home

README = (home() / "README.md").read_text()
ROWS = re.findall(r"^\| [^|]+ \| ((?:`\w+::\w+`(?:, )?)+) \|$", README, re.MULTILINE)
NAMED = sorted({name for tests in ROWS for name in re.findall(r"`(\w+::\w+)`", tests)})


def test_every_promise_in_the_readme_names_tests() -> None:
    table = README[README.index("| promise | its tests") : README.index("`rerun=true` begins anew")]
    assert len(ROWS) == len(table.strip().splitlines()) - 2
    assert len(ROWS) >= 20


@pytest.mark.parametrize("name", NAMED)
def test_promised_test_exists_and_runs_with_every_change(name: str, collected_tests: dict[str, list[set[str]]]) -> None:
    file, function = name.split("::")
    if not any(found.startswith(f"{file}::") for found in collected_tests):
        pytest.skip("this run collects some files only")
    assert any(not {"long", "real"} & marks for marks in collected_tests.get(name, [])), (
        f"no tests/test_{file}.py::test_{function} outside the long tier"
    )


def test_make_targets_in_the_readme_exist() -> None:
    made = set(re.findall(r"^([a-z-]+):.*##", (home() / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", README, re.MULTILINE)) <= made
