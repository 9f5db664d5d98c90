import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.kept import Store
from dogbreeds.spec import Refused

SHAPE = (100, 4)


def counting(calls: list[int], delay: float = 0.0, fail_at: int | None = None):
    def produce(rows):
        calls.append(1)
        for start in range(0, len(rows), 10):
            if start == fail_at:
                raise RuntimeError("interrupted")
            rows[start : start + 10] = np.arange(start, start + 10)[:, None]
            time.sleep(delay)
            yield start + 10
        return {"said": "done"}

    return produce


@pytest.fixture
def store(tmp_path: Path):
    yield Store(tmp_path / "kept", max_bytes=10**9)
    Store.release()


def test_an_array_is_computed_once_and_read_back(store: Store) -> None:
    calls: list[int] = []
    first = store.array("features", {"a": 1}, SHAPE, "float32", counting(calls))
    again = store.array("features", {"a": 1}, SHAPE, "float32", counting(calls))
    assert calls == [1]
    assert again.notes == {"said": "done"}
    assert np.array_equal(first.rows, again.rows)
    assert again.rows[:, 0].tolist() == list(range(100))
    assert not again.rows.flags.writeable
    store.array("features", {"a": 2}, SHAPE, "float32", counting(calls))
    assert len(calls) == 2


def test_rows_are_given_while_they_are_computed(store: Store) -> None:
    seen: list[int] = []

    def produce(rows):
        for start in range(0, 100, 10):
            rows[start : start + 10] = start
            seen.append(start)
            yield start + 10
        return {}

    stream = store.stream("photos", {}, SHAPE, "float32", produce, batch=20)
    assert next(stream).shape == (20, 4)
    assert seen == [0, 10]
    assert sum(len(piece) for piece in stream) == 80
    kept = [len(piece) for piece in store.stream("photos", {}, SHAPE, "float32", produce, batch=30)]
    assert kept == [30, 30, 30, 10]
    assert len(seen) == 10


def test_what_was_interrupted_leaves_nothing_and_is_computed_anew(store: Store) -> None:
    calls: list[int] = []
    with pytest.raises(RuntimeError):
        store.array("features", {}, SHAPE, "float32", counting(calls, fail_at=50))
    assert [path.name for path in store.root.iterdir() if not path.name.endswith((".lock", ".use"))] == []
    store.array("features", {}, SHAPE, "float32", counting(calls))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["a bit", "an end", "entry.json"])
def test_a_damaged_array_is_noticed_and_computed_anew(store: Store, damage: str) -> None:
    calls: list[int] = []
    entry = store.array("features", {}, SHAPE, "float32", counting(calls))
    Store.release()
    Store._verified.clear()  # as in another process
    damaged = bytearray((entry.folder / "rows.npy").read_bytes())
    damaged[-3] ^= 1
    if damage == "entry.json":
        (entry.folder / "entry.json").write_text("{")
    else:
        (entry.folder / "rows.npy").write_bytes(damaged if damage == "a bit" else damaged[:-100])
    again = store.array("features", {}, SHAPE, "float32", counting(calls))
    assert len(calls) == 2
    assert again.rows[99, 0] == 99


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    big = (1000, 25)  # 100 kB
    store = Store(tmp_path / "kept", max_bytes=250_000)

    def produce(rows):
        rows[:] = 1
        yield len(rows)
        return {}

    def names() -> set[str]:
        return {identity["n"] for *_, identity in store.entries()}

    for name in "ab":
        store.array("features", {"n": name}, big, "float32", produce)
        Store.release()
        time.sleep(0.02)
    store.array("features", {"n": "a"}, big, "float32", produce)  # used again: b is now the oldest
    Store.release()
    store.array("features", {"n": "c"}, big, "float32", produce)
    assert names() == {"a", "c"}
    store.array("features", {"n": "a"}, big, "float32", produce)  # in use, like c
    store.array("features", {"n": "d"}, big, "float32", produce)
    assert names() == {"a", "c", "d"}
    Store.release()
    assert store.clear() == (3, 0)


def test_without_room_it_says_so_before_it_computes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    calls: list[int] = []
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(Refused, match=r"has no room for 0\.0 GB of features \(No space left on device\)\. .* Type features\.dir=<folder>, "):
        store.array("features", {}, SHAPE, "float32", counting(calls))
    assert calls == []
    assert store.entries() == []


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"file/kept cannot be written \(Not a directory\)\. .* Type features\.dir=<folder>\."):
        Store(tmp_path / "file/kept", 1).array("features", {}, SHAPE, "float32", counting([]))


def _compute(root: Path, counter) -> None:
    calls: list[int] = []
    Store(root, 10**9).array("features", {}, SHAPE, "float32", counting(calls, delay=0.05))
    with counter.get_lock():
        counter.value += len(calls)


def test_of_processes_that_want_the_same_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    workers = [context.Process(target=_compute, args=(tmp_path, counter)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert counter.value == 1


def _hold(root: Path, ready, leave) -> None:
    Store(root, 10**9).array("features", {}, SHAPE, "float32", counting([]))
    ready.set()
    leave.wait(30)


def test_what_another_process_uses_is_not_removed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    worker = context.Process(target=_hold, args=(tmp_path, ready, leave))
    worker.start()
    assert ready.wait(30)
    assert Store(tmp_path, 10**9).clear() == (0, 1)
    leave.set()
    worker.join(30)
    assert Store(tmp_path, 10**9).clear() == (1, 0)
