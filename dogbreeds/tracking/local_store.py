"""Local MLflow stores: a new one in a SQLite file, and file stores of earlier versions of MLflow."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from shlex import quote

from dogbreeds.core.files import fsync

# A folder in memory, on Linux.
_IN_MEMORY = "/dev/shm"


def create_store(file: Path) -> None:
    """Create a store that MLflow can open, complete from the moment at which the file exists.

    MLflow creates its tables in more than a thousand statements, and after many of them SQLite waits for the disk:
    3 to 9 s where other processes use the disk too. Here this happens in memory, and the disk is waited for once.

    Args:
        file: the new file. One that another process has created meanwhile stays.
    """
    # MLflow's own default, for the experiment Default that it creates in each store.
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    fast = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as folder, tempfile.TemporaryDirectory(dir=file.parent) as same_disk:
        created = Path(folder) / file.name
        SqlAlchemyStore(f"sqlite:///{created}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        copy = Path(same_disk) / file.name
        shutil.copyfile(created, copy)
        fsync(copy)
        # A link never replaces a file. Where there are no links, MLflow creates the store itself.
        with contextlib.suppress(OSError):
            os.link(copy, file)


def is_file_store(folder: Path) -> bool:
    """Whether a folder is a file store, in which MLflow kept runs up to version 2."""
    try:
        return any(folder.glob("*/meta.yaml"))
    except OSError:
        return False


def migration_command(folder: Path, database: Path) -> str:
    """Return the command that copies the runs of a file store into a new SQLite file."""
    return f"mlflow migrate-filestore --source {quote(str(folder))} --target {quote(f'sqlite:///{database}')}"


def file_store_note(uri: str) -> str:
    """Say that the folder of a local store holds runs of a file store too, which nothing reads; empty otherwise."""
    database = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not is_file_store(database.parent):
        return ""
    target = database.with_name("migrated.db")
    return (
        f"{database.parent} also holds runs of an older MLflow, as files, which are not read. To see them, type"
        f" {migration_command(database.parent, target)}, and then tracking.uri=sqlite:///{target} with any command."
    )
