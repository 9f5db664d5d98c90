import os
import random
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.core.files import atomic_folder, atomic_write, output_stream, read_npz

OWNED = ("page.html", "more", "old.png")


def test_atomic_folder_replaces_the_output_of_an_earlier_command(tmp_path) -> None:
    target = tmp_path / "deep/out"
    with atomic_folder(target, OWNED) as temporary:
        (temporary / "page.html").write_text("new")
        (temporary / "old.png").write_text("old")
        (temporary / "more").mkdir()
        (temporary / "more/a").write_text("a")
        assert not (target / "page.html").exists()
    (target / "mine.txt").write_text("other")
    with atomic_folder(target, OWNED) as temporary:
        (temporary / "page.html").write_text("newer")
        (temporary / "more").mkdir()
    assert {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()} == {
        "page.html": "newer",
        "mine.txt": "other",
    }


def test_atomic_folder_is_unchanged_after_an_interruption(tmp_path) -> None:
    with atomic_folder(tmp_path / "out", OWNED) as temporary:
        (temporary / "page.html").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out", OWNED) as temporary:
        (temporary / "page.html").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]
    assert (tmp_path / "out/page.html").read_text() == "old"


def test_atomic_folder_rejects_a_path_that_is_a_file(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            UserError,
            match=r"file cannot be created \(File exists\)\. output must be a folder .*\. Type output=<folder>\.",
        ),
        atomic_folder(tmp_path / "file", OWNED),
    ):
        pass


@pytest.mark.parametrize("sole_writer", [True, False])
def test_atomic_write_replaces_the_file_after_the_block_only(tmp_path: Path, sole_writer: bool) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target, sole_writer=sole_writer) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    with atomic_write(target, sole_writer=sole_writer) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_sole_writer_replaces_the_temporary_file_of_a_killed_process(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "first", sole_writer=True) as abandoned:
        raise KeyboardInterrupt
    abandoned.write_text("half")
    with atomic_write(tmp_path / "second", sole_writer=True) as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["second"]


@pytest.mark.parametrize("durable", [True, False])
def test_durable_write_flushes_the_file_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    flushed: list[tuple[str, bool]] = []
    fsync = os.fsync

    def recorded(number: int) -> None:
        flushed.append((Path(os.readlink(f"/proc/self/fd/{number}")).read_text(), (tmp_path / "file").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", recorded)
    with atomic_write(tmp_path / "file", durable=durable) as temporary:
        temporary.write_text("new")
    assert flushed == ([("new", False)] if durable else [])


def test_output_stream_writes_a_complete_file_or_none(tmp_path) -> None:
    target = tmp_path / "deep/answers.csv"
    with pytest.raises(KeyboardInterrupt), output_stream(str(target), "classes.csv") as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    with output_stream(str(target), "classes.csv") as stream:
        stream.write("photo,breed\n")
        assert not target.exists()
    assert target.read_text() == "photo,breed\n"
    assert [path.name for path in target.parent.iterdir()] == ["answers.csv"]


@pytest.mark.parametrize("path", ["/dev/null", "/proc", "/proc/none/x"])
def test_output_stream_rejects_a_path_that_is_no_regular_file(path: str) -> None:
    with (
        pytest.raises(
            UserError, match=rf"{path} cannot be written \(.+\)\. output must be a file\. Type output=classes\.csv"
        ),
        output_stream(path, "classes.csv"),
    ):
        pass


def test_atomic_folder_rejects_a_folder_with_other_files(tmp_path) -> None:
    (tmp_path / "page.txt").write_text("mine")
    with (
        pytest.raises(
            UserError,
            match=(
                r"contains other files, such as page\.txt\. output must be a new folder, an empty one, or the output of"
                r" an earlier command\. Type output=<folder>\."
            ),
        ),
        atomic_folder(tmp_path, OWNED),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["page.txt"]


def test_atomic_folder_removes_temporary_folders_of_killed_processes_and_an_empty_new_folder(tmp_path) -> None:
    abandoned = tmp_path / "out/.99999999.part"
    abandoned.mkdir(parents=True)
    with atomic_folder(tmp_path / "out", OWNED) as temporary:
        (temporary / "page.html").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "other", OWNED):
        raise ZeroDivisionError
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_read_npz_has_one_error_for_all_damage(tmp_path: Path, save) -> None:
    file = tmp_path / "arrays.npz"
    arrays = {"ids": np.asarray(["a", "é"]), "logits": np.ones((20, 3), np.float32)}
    save(file, **arrays)
    whole = file.read_bytes()
    read = read_npz(file)
    assert {name: values.tolist() for name, values in read.items()} == {
        name: values.tolist() for name, values in arrays.items()
    }
    rng = random.Random(0)
    damaged = 0
    for number in range(150):
        content = bytearray(whole if number % 3 else whole[: rng.randrange(len(whole))])
        for _ in range(rng.choice((1, 16))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content)
        try:
            read_npz(file)
        except ValueError:
            damaged += 1
    assert damaged > 50
    np.save(tmp_path / "one.npy", np.ones(3))
    for other in ("one.npy", "missing.npz"):
        with pytest.raises(ValueError):
            read_npz(tmp_path / other)
