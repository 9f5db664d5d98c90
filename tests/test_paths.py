"""`core.paths`: the checkout, the config folder and the folder of runs."""

from pathlib import Path

import pytest

from dogbreeds.core import paths

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package that was installed from a wheel."""
    package = tmp_path / "site-packages/dogbreeds"
    (package / "conf").mkdir(parents=True)
    monkeypatch.setattr(paths, "_PACKAGE", package)
    return package


def test_checkout_holds_the_package_and_its_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOGBREEDS_HOME", raising=False)
    assert paths.checkout() == paths.home() == ROOT
    assert paths.config_folder() == ROOT / "conf"
    assert (paths.config_folder() / "train.yaml").is_file()


def test_installed_package_has_configs_within_it_and_runs_in_the_current_folder(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DOGBREEDS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.checkout() is None
    assert paths.config_folder() == installed / "conf"
    assert paths.home() == tmp_path


@pytest.mark.parametrize("value", ["elsewhere", "/elsewhere"])
def test_environment_variable_moves_runs_but_not_configs(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOGBREEDS_HOME", value)
    assert paths.home() == Path(value)
    assert paths.config_folder() == ROOT / "conf"
