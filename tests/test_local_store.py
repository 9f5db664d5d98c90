"""New MLflow stores in SQLite files."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from dogbreeds.tracking import local_store
from dogbreeds.tracking.local_store import create_store

pytestmark = pytest.mark.slow


def _schema(file: Path) -> dict[str, list[tuple]]:
    """Return the columns of each table and index, and the version. MLflow's order of constraints varies."""
    with sqlite3.connect(file) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        columns = {
            name: [*connection.execute(f"PRAGMA table_info({name})"), *connection.execute(f"PRAGMA index_info({name})")]
            for name in names
        }
        return columns | {"version": connection.execute("SELECT version_num FROM alembic_version").fetchall()}


@pytest.mark.parametrize("in_memory", [True, False])
def test_new_store_has_the_tables_that_mlflow_creates(
    in_memory: bool, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr(local_store, "_IN_MEMORY", str(tmp_path / "missing"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mlflow.db"
    create_store(file)
    assert _schema(file) == _schema(empty_store)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    with sqlite3.connect(file) as connection:
        (location,) = connection.execute("SELECT artifact_location FROM experiments").fetchone()
    assert location == f"{tmp_path}/mlruns/0"


def test_new_store_does_not_replace_that_of_another_process(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"of another process")
    create_store(file)
    assert file.read_bytes() == b"of another process"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_connection_creates_only_a_missing_store(tmp_path: Path, composed, monkeypatch: pytest.MonkeyPatch) -> None:
    created = []
    monkeypatch.setattr("dogbreeds.tracking.connection.create_store", created.append)
    tracking = composed().tracking
    tracking.connect()
    assert created == []
    replace(tracking, uri=f"sqlite:///{tmp_path}/other/mlflow.db").connect()
    assert created == [tmp_path / "other/mlflow.db"]
