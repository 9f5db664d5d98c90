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

from dogbreeds.core.errors import UserError
from dogbreeds.training.checkpoint import Checkpoints

ARRAYS = {"weights.0": np.arange(1000, dtype=np.float32), "seeds": np.array([3, 2**32 - 1], dtype=np.uint32)}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints/a")


def test_what_is_saved_comes_back_bit_for_bit(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None
    loss = float(np.nextafter(0.1, 1))
    checkpoints.save({"epoch": 3, "loss": loss, "worst": float("inf"), "parent": None}, ARRAYS)
    about, arrays = checkpoints.load()
    assert about == {"epoch": 3, "loss": loss, "worst": float("inf"), "parent": None}
    assert {name: (array.dtype, array.tobytes()) for name, array in arrays.items()} == {
        name: (array.dtype, array.tobytes()) for name, array in ARRAYS.items()
    }


def test_the_newest_two_are_kept(checkpoints: Checkpoints) -> None:
    for epoch in range(4):
        checkpoints.save({"epoch": epoch}, ARRAYS)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["00000003.npz", "00000004.npz"]
    assert checkpoints.load()[0] == {"epoch": 3}
    checkpoints.remove()
    assert checkpoints.load() is None
    assert not checkpoints.folder.exists()


@pytest.mark.parametrize("damage", ["a bit", "an end", "all", "empty"])
def test_a_damaged_one_is_noticed_and_the_one_before_is_used(
    checkpoints: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in range(2):
        checkpoints.save({"epoch": epoch}, ARRAYS)
    newest = checkpoints.newest
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes({"a bit": content, "an end": content[:-200], "all": b"x" * 500, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        about, arrays = checkpoints.load()
    assert about == {"epoch": 0}
    assert np.array_equal(arrays["weights.0"], ARRAYS["weights.0"])
    assert caplog.messages == [f"the checkpoint {newest} is damaged and is passed over"]
    checkpoints.save({"epoch": 9}, ARRAYS)
    assert checkpoints.load()[0] == {"epoch": 9}


def test_what_a_killed_process_left_beside_is_not_read(checkpoints: Checkpoints) -> None:
    checkpoints.save({"epoch": 0}, ARRAYS)
    (checkpoints.folder / "aside").write_bytes(b"half")
    assert checkpoints.load()[0] == {"epoch": 0}
    checkpoints.save({"epoch": 1}, ARRAYS)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["00000001.npz", "00000002.npz"]


def test_without_room_the_last_one_stays_and_nothing_is_left_beside(checkpoints: Checkpoints) -> None:
    checkpoints.save({"epoch": 0}, ARRAYS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            UserError,
            match=(
                r"^The checkpoint in .*/a cannot be written \(File too large\)\. It needs .*\. Make room and run the"
                r" same "
            ),
        ):
            checkpoints.save({"epoch": 1}, ARRAYS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in checkpoints.folder.iterdir()] == ["00000001.npz"]
    assert checkpoints.load()[0] == {"epoch": 0}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match=r"cannot be locked \(.*\)\. It needs a folder that can be written.* or type checkpoint_dir=<folder>\.",
    ), Checkpoints(tmp_path / "file/a").locked():
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


def test_one_process_at_a_time_works_on_a_run_and_no_lock_is_left(checkpoints: Checkpoints) -> None:
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


def _die_at_work(folder: Path) -> None:
    with Checkpoints(folder).locked():
        os.kill(os.getpid(), signal.SIGKILL)


def test_who_gets_a_lock_after_one_that_was_killed_learns_which(checkpoints: Checkpoints) -> None:
    with checkpoints.locked() as gone:
        assert gone == []
    with checkpoints.locked() as gone:
        # The first ended in order
        assert gone == []
    expected = []
    for _ in range(2):
        killed = multiprocessing.get_context("spawn").Process(target=_die_at_work, args=(checkpoints.folder,))
        killed.start()
        killed.join()
        expected.append(killed.pid)
    with pytest.raises(ValueError, match="the server is away"), checkpoints.locked() as gone:
        assert [re.fullmatch(rf"{platform.node()} \S+ (\d+) \d+\.\d+", process)[1] for process in gone] == [
            str(number) for number in expected
        ]
        raise ValueError("the server is away")
    with checkpoints.locked() as again:
        assert again == gone
        again.clear()
    with checkpoints.locked() as gone:
        assert gone == []
    assert list(checkpoints.folder.parent.iterdir()) == []
