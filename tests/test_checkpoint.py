import contextlib
import logging
import multiprocessing
import os
import platform
import re
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core import locks
from dogbreeds.core.errors import UserError
from dogbreeds.training.checkpoint import Checkpoints

ARRAYS = {"weights.0": np.arange(1000, dtype=np.float32), "seeds": np.array([3, 2**32 - 1], dtype=np.uint32)}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints/a")


def test_load_returns_what_save_wrote_bit_for_bit(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None
    loss = float(np.nextafter(0.1, 1))
    checkpoints.save({"epoch": 3, "loss": loss, "worst": float("inf"), "parent": None}, ARRAYS)
    metadata, arrays = checkpoints.load()
    assert metadata == {"epoch": 3, "loss": loss, "worst": float("inf"), "parent": None}
    assert {name: (array.dtype, array.tobytes()) for name, array in arrays.items()} == {
        name: (array.dtype, array.tobytes()) for name, array in ARRAYS.items()
    }


def test_save_retains_the_two_newest_checkpoints(checkpoints: Checkpoints) -> None:
    for epoch in range(4):
        checkpoints.save({"epoch": epoch}, ARRAYS)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["00000003.npz", "00000004.npz"]
    assert checkpoints.load()[0] == {"epoch": 3}
    checkpoints.remove()
    assert checkpoints.load() is None
    assert not checkpoints.folder.exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "overwritten", "empty"])
def test_load_skips_a_damaged_checkpoint_for_the_one_before(
    checkpoints: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in range(2):
        checkpoints.save({"epoch": epoch}, ARRAYS)
    newest = checkpoints.newest
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(
        {"flipped": content, "truncated": content[:-200], "overwritten": b"x" * 500, "empty": b""}[damage]
    )
    with caplog.at_level(logging.WARNING):
        metadata, arrays = checkpoints.load()
    assert metadata == {"epoch": 0}
    assert np.array_equal(arrays["weights.0"], ARRAYS["weights.0"])
    assert caplog.messages == [f"checkpoint {newest} is damaged and is skipped"]
    checkpoints.save({"epoch": 9}, ARRAYS)
    assert checkpoints.load()[0] == {"epoch": 9}


def test_load_ignores_the_temporary_file_of_a_killed_process(checkpoints: Checkpoints) -> None:
    checkpoints.save({"epoch": 0}, ARRAYS)
    (checkpoints.folder / "aside").write_bytes(b"half")
    assert checkpoints.load()[0] == {"epoch": 0}
    checkpoints.save({"epoch": 1}, ARRAYS)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["00000001.npz", "00000002.npz"]


def test_save_without_disk_space_leaves_the_last_checkpoint_and_no_temporary_file(checkpoints: Checkpoints) -> None:
    checkpoints.save({"epoch": 0}, ARRAYS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            UserError,
            match=(
                r"^The checkpoint in .*/a cannot be written \(File too large\)\. .* disk with free space\. .* same"
                r" command again, .* or set checkpoint_dir=<folder>\.$"
            ),
        ):
            checkpoints.save({"epoch": 1}, ARRAYS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in checkpoints.folder.iterdir()] == ["00000001.npz"]
    assert checkpoints.load()[0] == {"epoch": 0}


def test_lock_in_an_unwritable_folder_raises_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = (
        r"^The checkpoint in .*/a cannot be locked \(.*\)\. .* writable folder.* or set checkpoint_dir=<folder>\.$"
    )
    with pytest.raises(UserError, match=message), Checkpoints(tmp_path / "file/a").locked():
        pass


def _work(folder: Path, running, most) -> None:
    for _ in range(20):
        with Checkpoints(folder).locked():
            with running.get_lock():
                running.value += 1
                most.value = max(most.value, running.value)
            time.sleep(0.001)
            with running.get_lock():
                running.value -= 1


def test_lock_admits_one_process_at_a_time_and_is_removed(checkpoints: Checkpoints) -> None:
    context = multiprocessing.get_context("fork")
    running, most = context.Value("i", 0), context.Value("i", 0)
    workers = [context.Process(target=_work, args=(checkpoints.folder, running, most)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert most.value == 1
    assert list(checkpoints.folder.parent.iterdir()) == []


def _die_with_the_lock(folder: Path) -> None:
    with Checkpoints(folder).locked():
        os.kill(os.getpid(), signal.SIGKILL)


def test_lock_tells_whether_it_was_waited_for_and_names_the_holder(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LOG_AFTER_SECONDS", 0.0)
    awaited: list[str] = []
    with contextlib.ExitStack() as holder:
        assert not holder.enter_context(checkpoints.locked()).waited

        def release(message: str, waiting_for: str) -> None:
            awaited.append(waiting_for)
            holder.close()

        # A warning: a Python caller that configures no logging sees no other messages.
        monkeypatch.setattr(locks.log, "warning", release)
        with checkpoints.locked() as lock:
            assert lock.waited
    assert [text.startswith(f"process {os.getpid()} on {platform.node()}") for text in awaited] == [True]


def test_lock_lists_the_processes_that_were_killed_while_they_held_it(checkpoints: Checkpoints) -> None:
    with checkpoints.locked() as lock:
        assert lock.dead_processes == []
    # The previous owner released the lock.
    with checkpoints.locked() as lock:
        assert lock.dead_processes == []
    expected = []
    for _ in range(2):
        killed = multiprocessing.get_context("spawn").Process(target=_die_with_the_lock, args=(checkpoints.folder,))
        killed.start()
        killed.join()
        expected.append(killed.pid)
    with pytest.raises(ValueError, match="the server is away"), checkpoints.locked() as first:
        assert [
            re.fullmatch(rf"{platform.node()} \S+ (\d+) \d+\.\d+", process)[1] for process in first.dead_processes
        ] == [str(number) for number in expected]
        raise ValueError("the server is away")
    with checkpoints.locked() as again:
        assert again.dead_processes == first.dead_processes
        again.dead_processes.clear()
    with checkpoints.locked() as lock:
        assert lock.dead_processes == []
    assert list(checkpoints.folder.parent.iterdir()) == []
