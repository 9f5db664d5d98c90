import contextlib
import fcntl
import itertools
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.paths import home
from dogbreeds.features import cache, memmap, partial_array
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.memmap import Unwritable
from dogbreeds.features.partial_array import CachedArray, Shard

SHAPE = (100, 4)


def counting(
    calls: list[int], delay: float = 0.0, fail_at: int | None = None, error: type[BaseException] = RuntimeError
):
    """A producer of ten rows at a time, which notes the rows that it has computed."""

    def produce(rows, start, notes):
        calls.append(1)
        for first in range(start, len(rows), 10):
            if first == fail_at:
                raise error("interrupted")
            rows[first : first + 10] = np.arange(first, first + 10)[:, None]
            notes.setdefault("computed", []).append(first)
            time.sleep(delay)
            yield first + 10

    return produce


def from_where(started: list[int]):
    """The same, which writes down from which row it starts."""

    def produce(rows, start, notes):
        started.append(start)
        yield from counting([])(rows, start, notes)

    return produce


@pytest.fixture
def store(tmp_path: Path):
    yield FeatureCache(tmp_path / "kept", max_bytes=10**9)
    FeatureCache.release()


def test_an_array_is_computed_once_and_read_back(store: FeatureCache) -> None:
    calls: list[int] = []
    first = store.array("features", {"a": 1}, SHAPE, "float32", counting(calls))
    again = store.array("features", {"a": 1}, SHAPE, "float32", counting(calls))
    assert calls == [1]
    assert again.notes == {"computed": list(range(0, 100, 10))}
    assert np.array_equal(first.rows, again.rows)
    assert again.rows[:, 0].tolist() == list(range(100))
    assert not again.rows.flags.writeable
    store.array("features", {"a": 2}, SHAPE, "float32", counting(calls))
    assert len(calls) == 2


def test_rows_are_given_while_they_are_computed(store: FeatureCache) -> None:
    seen: list[int] = []

    def produce(rows, _, __):
        for start in range(0, 100, 10):
            rows[start : start + 10] = start
            seen.append(start)
            yield start + 10

    stream = store.stream("photos", {}, SHAPE, "float32", produce, batch=20)
    assert next(stream).shape == (20, 4)
    assert seen == [0, 10]
    assert sum(len(piece) for piece in stream) == 80
    kept = [len(piece) for piece in store.stream("photos", {}, SHAPE, "float32", produce, batch=30)]
    assert kept == [30, 30, 30, 10]
    assert len(seen) == 10


def content(entry: CachedArray) -> tuple[bytes, str]:
    return (entry.folder / "rows.npy").read_bytes(), (entry.folder / "entry.json").read_text()


def parts(store: FeatureCache) -> list[Path]:
    return [path for path in store.root.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_interrupted_is_gone_on_with(
    store: FeatureCache, tmp_path: Path, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    expected = content(FeatureCache(tmp_path / "other", 10**9).array("features", {}, SHAPE, "float32", counting([])))
    with pytest.raises(error):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50, error=error))
    (part,) = parts(store)
    assert json.loads((part / "progress.json").read_text())["done"] == 50
    assert [(listed.name, listed.identity, listed.unfinished) for listed in store.entries()] == [
        (part.name, {}, (50, 100))
    ]
    started: list[int] = []
    entry = store.array("features", {}, SHAPE, "float32", from_where(started))
    assert started == [50]
    assert caplog.messages == []
    assert content(entry) == expected
    assert parts(store) == []


def test_notes_are_of_the_rows_that_are_done(store: FeatureCache) -> None:
    def produce(rows, start, notes):
        yield from counting([], fail_at=50)(rows[:50], start, notes)
        # And then, before the row is done
        notes["computed"].append(50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.array("features", {}, SHAPE, "float32", produce)
    assert store.array("features", {}, SHAPE, "float32", counting([])).notes == {"computed": list(range(0, 100, 10))}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError, Unwritable])
def test_where_nothing_is_done_nothing_stays(store: FeatureCache, error: type[BaseException]) -> None:
    with pytest.raises(error):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=0, error=error))
    assert parts(store) == []


@pytest.mark.parametrize("error", [FileNotFoundError, MissingFileError])
def test_what_a_producer_says_is_passed_on_as_it_is(store: FeatureCache, error: type[OSError]) -> None:
    with pytest.raises(error, match=r"^interrupted$"):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50, error=error))


def test_a_producer_that_ends_early_makes_no_entry(store: FeatureCache) -> None:
    with pytest.raises(RuntimeError, match=r"the producer of .*/features-\w+ ended after 50 of 100 rows"):
        store.array("features", {}, SHAPE, "float32", lambda rows, start, notes: counting([])(rows[:50], start, notes))
    assert [listed.unfinished for listed in store.entries()] == [(50, 100)]


def test_a_reader_who_leaves_loses_nothing(store: FeatureCache) -> None:
    stream = store.stream("features", {}, SHAPE, "float32", counting([]), batch=20)
    next(stream)
    next(stream)
    stream.close()
    started: list[int] = []
    pieces = list(store.stream("features", {}, SHAPE, "float32", from_where(started), batch=30, start=20))
    assert started == [40]
    assert [len(piece) for piece in pieces] == [30, 30, 20]
    assert np.concatenate(pieces)[:, 0].tolist() == list(range(20, 100))
    again = list(store.stream("features", {}, SHAPE, "float32", from_where(started), batch=30, start=20))
    assert [piece.tolist() for piece in again] == [piece.tolist() for piece in pieces]
    assert started == [40]


def test_a_reader_may_begin_beyond_what_is_done(store: FeatureCache) -> None:
    with pytest.raises(RuntimeError):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50))
    started: list[int] = []
    pieces = list(store.stream("features", {}, SHAPE, "float32", from_where(started), batch=15, start=75))
    assert started == [50]
    assert np.concatenate(pieces)[:, 0].tolist() == list(range(75, 100))


def test_what_the_user_must_put_right_leaves_nothing(store: FeatureCache) -> None:
    with pytest.raises(UserError):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50, error=UserError))
    assert parts(store) == []


@pytest.mark.parametrize(
    "damage",
    [
        "rows",
        "an end",
        "progress",
        "brackets",
        "no progress",
        "too many",
        "another identity",
        "another step",
        "another shape",
    ],
)
def test_a_part_that_cannot_be_trusted_is_begun_anew(
    store: FeatureCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50), step=10)
    (part,) = parts(store)
    if damage == "rows":
        rows = np.lib.format.open_memmap(part / "rows.npy", mode="r+")
        rows[49, 3] += 1
        rows.flush()
    elif damage == "an end":
        (part / "rows.npy").write_bytes((part / "rows.npy").read_bytes()[:-1])
    elif damage == "progress":
        (part / "progress.json").write_text('{"done": 5')
    elif damage == "brackets":
        (part / "progress.json").write_text("[" * 100_000)
        assert [(listed.identity, listed.unfinished) for listed in store.entries()] == [({}, (0, 0))]
    elif damage == "no progress":
        (part / "progress.json").unlink()
    elif damage in ("too many", "another identity"):
        said = json.loads((part / "progress.json").read_text())
        too_many = {"done": 500, "crc32": memmap.checksum(np.load(part / "rows.npy"))}
        (part / "progress.json").write_text(
            json.dumps(said | (too_many if damage == "too many" else {"identity": {"a": 1}}))
        )
    step, shape = (20 if damage == "another step" else 10), ((90, 4) if damage == "another shape" else SHAPE)
    with caplog.at_level(logging.WARNING):
        entry = store.array("features", {}, shape, "float32", counting([]), step=step)
    assert entry.notes["computed"] == list(range(0, shape[0], 10))
    if damage == "another step":
        assert caplog.messages == [f"{part.name} was computed 10 at a time, not 20: it is computed anew"]
    elif damage == "no progress":
        assert caplog.messages == [f"{part} does not say what of it is done: it is computed anew"]
    else:
        assert caplog.messages == [f"{part} was damaged and is computed anew"]
    assert np.array_equal(entry.rows[:, 0], np.arange(shape[0]))


def _killed_at(root: Path, at: int) -> None:
    """Computes with a note after every step, and ends with SIGKILL at the so-manieth write, rename or step."""
    moments = itertools.count(1)

    def moment() -> None:
        if next(moments) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    partial_array._PROGRESS_SECONDS = 0.0
    real_replace, real_dump = Path.replace, json.dump

    def replace(self, target):
        moment()
        real_replace(self, target)
        moment()

    def dump(about, file, **named):
        # Half of it
        file.write(json.dumps(about)[:20])
        file.flush()
        moment()
        file.seek(0)
        real_dump(about, file, **named)

    def produce(rows, start, notes):
        for done in counting([])(rows, start, notes):
            moment()
            yield done

    Path.replace, json.dump = replace, dump  # type: ignore[method-assign,assignment]
    FeatureCache(root, 10**9).array("features", {}, SHAPE, "float32", produce, step=10)
    os._exit(7)


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    expected = content(
        FeatureCache(tmp_path / "whole", 10**9).array("features", {}, SHAPE, "float32", counting([]), step=10)
    )
    context = multiprocessing.get_context("fork")
    began: list[int] = []
    for at in range(1, 100):
        root = tmp_path / str(at)
        worker = context.Process(target=_killed_at, args=(root, at))
        worker.start()
        worker.join(30)
        if worker.exitcode == 7:
            break
        assert worker.exitcode == -signal.SIGKILL
        entry = FeatureCache(root, 10**9).array("features", {}, SHAPE, "float32", from_where(began), step=10)
        assert content(entry) == expected
        assert parts(FeatureCache(root, 10**9)) == []
    assert at > 40
    # The later it was killed, the less had to be done again
    assert began == sorted(began)
    # And where all was done but the last rename, nothing
    assert set(began) == set(range(0, 100, 10))
    FeatureCache.release()


def _hang(root: Path, ready) -> None:
    def produce(rows, start, notes):
        for done in counting([])(rows, start, notes):
            yield done
            if done == 50:
                ready.set()
                time.sleep(60)

    partial_array._PROGRESS_SECONDS = 0.0
    FeatureCache(root, 10**9).array("features", {}, SHAPE, "float32", produce)


def test_who_waits_goes_on_where_the_other_was_killed_and_nobody_else_takes_it_away(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_hang, args=(tmp_path, ready))
    worker.start()
    assert ready.wait(30)
    store = FeatureCache(tmp_path, 10**9)
    # Somebody is at work on it
    assert store.clear() == (0, 1)
    threading.Timer(0.3, worker.kill).start()
    started: list[int] = []
    entry = store.array("features", {}, SHAPE, "float32", from_where(started))
    worker.join(30)
    assert worker.exitcode == -signal.SIGKILL
    assert started == [50]
    assert entry.notes == {"computed": list(range(0, 100, 10))}
    FeatureCache.release()


def test_an_array_that_went_away_while_it_was_in_use_is_computed_by_one_process_all_the_same(tmp_path: Path) -> None:
    store, calls = FeatureCache(tmp_path, 10**9), list[int]()
    shutil.rmtree(store.array("features", {}, SHAPE, "float32", counting([])).folder)
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    worker = context.Process(target=_compute, args=(tmp_path, counter))
    worker.start()
    while worker.is_alive() and not parts(store):
        time.sleep(0.01)
    entry = store.array("features", {}, SHAPE, "float32", counting(calls))
    worker.join(30)
    assert (worker.exitcode, counter.value, calls) == (0, 1, [])
    assert entry.rows[:, 0].tolist() == list(range(100))
    FeatureCache.release()


def test_parts_are_cleared_and_evicted_like_entries(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path, 10**9)
    with pytest.raises(RuntimeError):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50))
    assert store.clear() == (1, 0)
    with pytest.raises(RuntimeError):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50))
    small = FeatureCache(tmp_path, 1000)
    small.array("features", {"another": 1}, (10, 4), "float32", counting([]))
    assert parts(small) == []
    assert [listed.identity for listed in small.entries()] == [{"another": 1}]
    FeatureCache.release()


def test_the_part_that_was_left_last_is_evicted_last(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path, 10**9)
    for name in "abc":
        with pytest.raises(RuntimeError):
            store.array("features", {"n": name}, SHAPE, "float32", counting([], fail_at=50))
        time.sleep(0.02)
    FeatureCache(tmp_path, 4000).array("features", {"n": "d"}, (10, 4), "float32", counting([]))
    assert [listed.identity["n"] for listed in store.entries()] == ["d", "c", "b"]
    FeatureCache.release()


def test_what_is_left_of_a_part_is_listed_and_cleared_and_what_is_not_ours_stays(store: FeatureCache) -> None:
    for name in (
        "features-" + 24 * "a" + ".part",
        ".features-" + 24 * "b" + ".part-0123abcd",
        "photos-" + 24 * "c",
        "film.part",
        "notes",
    ):
        (store.root / name).mkdir(parents=True)
        (store.root / name / "rows.npy").write_bytes(b"x" * 1000)
    (store.root / ("features-" + 24 * "a" + ".part") / "progress.json").write_text('{"identity"')
    (store.root / "notes/entry.json").write_text("{}")
    listed = {listed.name: (listed.size, listed.identity, listed.unfinished) for listed in store.entries()}
    assert listed == {
        "features-" + 24 * "a" + ".part": (1000, {}, (0, 0)),
        ".features-" + 24 * "b" + ".part-0123abcd": (1000, {}, (0, 0)),
        "photos-" + 24 * "c": (1000, {}, None),
    }
    assert store.clear() == (3, 0)
    assert sorted(path.name for path in store.root.iterdir() if path.is_dir()) == ["film.part", "notes"]


def test_without_room_for_a_note_it_says_so(store: FeatureCache) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def produce(rows, start, notes):
        notes["skipped"] = list(range(10_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        yield len(rows)

    try:
        with pytest.raises(
            UserError,
            match=(
                r"progress\.json cannot be written \(File too large\)\. .* on a disk with room; .*\. Type"
                r" features\.dir="
            ),
        ):
            store.array("features", {}, SHAPE, "float32", produce)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [sorted(file.name for file in part.iterdir()) for part in parts(store)] == [["progress.json", "rows.npy"]]
    assert store.array("features", {}, SHAPE, "float32", counting([])).notes["computed"][-1] == 90


def test_without_room_what_is_done_stays_even_of_what_needed_the_room(
    store: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def produce(rows, start, notes):
        for done in counting([])(rows, start, notes):
            if done == 60:
                monkeypatch.setattr("os.posix_fallocate", full)
                store.array("photos", {}, SHAPE, "float32", counting([]))
            yield done

    with pytest.raises(UserError, match=r"has no room for 0\.0 GB of features"):
        store.array("features", {}, SHAPE, "float32", produce)
    assert [(listed.name.split("-")[0], listed.unfinished) for listed in store.entries()] == [("features", (50, 100))]


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    """Without the rights of an administrator, who may write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that may be read and not written, and what is above it may be passed."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        os.chmod(name, 0o755)
        FeatureCache.release()


def test_a_place_that_may_only_be_read_is_refused(closed: Path) -> None:
    calls: list[int] = []
    closed.chmod(0o555)
    with (
        _as_nobody(),
        pytest.raises(
            UserError,
            match=r"/\.features-\w+\.lock cannot be written \(Permission denied\)\. Features need .*\. Type features",
        ),
    ):
        FeatureCache(closed, 1).array("features", {}, SHAPE, "float32", counting(calls))
    assert calls == []
    closed.chmod(0o755)
    FeatureCache(closed, 10**9).array("features", {}, SHAPE, "float32", counting(calls))
    FeatureCache.release()
    closed.chmod(0o555)
    for file in closed.glob(".*"):
        file.chmod(0o444)
    with _as_nobody():
        assert [listed.unfinished for listed in FeatureCache(closed, 1).entries()] == [None]
        with pytest.raises(UserError, match=r"/features-\w+ cannot be written \(Permission denied\)\. "):
            FeatureCache(closed, 1).clear()
    assert calls == [1]


def test_an_entry_whose_time_cannot_be_set_is_refused(store: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.utime", denied)
    with pytest.raises(
        UserError,
        match=(
            r"/features-\w+ cannot be written \(Operation not permitted\)\. Features need .*\. Type"
            r" features\.dir=<folder>\."
        ),
    ):
        store.array("features", {}, SHAPE, "float32", counting([]))


def test_a_part_that_another_user_left_is_refused_and_stays(closed: Path) -> None:
    store = FeatureCache(closed, 10**9)
    with pytest.raises(RuntimeError):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50))
    (part,) = parts(store)
    for path in (closed, *closed.glob(".*")):
        path.chmod(0o777)
    (part / "rows.npy").chmod(0o444)
    with (
        _as_nobody(),
        pytest.raises(
            UserError,
            match=r"/features-\w+\.part cannot be written \(Permission denied\)\. Features need .*\. Type features",
        ),
    ):
        store.array("features", {}, SHAPE, "float32", counting([]))
    assert [listed.unfinished for listed in store.entries()] == [(50, 100)]


def test_what_another_user_hides_is_passed_over(closed: Path) -> None:
    store = FeatureCache(closed, max_bytes=1)
    with pytest.raises(RuntimeError):
        store.array("features", {}, SHAPE, "float32", counting([], fail_at=50))
    (part,) = parts(store)
    part.chmod(0)
    closed.chmod(0o777)
    with _as_nobody():
        assert store.entries() == []
        # And evicts what it can
        store.array("features", {"mine": 1}, SHAPE, "float32", counting([]))
        assert [listed.identity for listed in store.entries()] == [{"mine": 1}]
    part.chmod(0o755)
    assert (part / "progress.json").exists()


def test_a_disk_without_locks_is_refused(store: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", without)
    with pytest.raises(
        UserError,
        match=(
            r"/\.features-\w+\.lock cannot be written \(No locks available\)\. Features need .*\. Type"
            r" features\.dir=<folder>\."
        ),
    ):
        store.array("features", {}, SHAPE, "float32", counting([]))
    assert parts(store) == []


@pytest.mark.parametrize(
    "damage", ["a bit", "an end", "all", "byte order", "header", "entry.json", "a list", "no entry.json", "no rows"]
)
def test_a_damaged_array_is_noticed_and_computed_anew(
    store: FeatureCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    entry = store.array("features", {}, SHAPE, "float32", counting(calls))
    expected = content(entry)
    FeatureCache.release()
    # As in another process
    FeatureCache._verified.clear()
    rows, about = entry.folder / "rows.npy", entry.folder / "entry.json"
    whole = rows.read_bytes()
    damaged = {
        "a bit": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "an end": whole[:-100],
        "all": b"",
        "byte order": whole.replace(b"<f4", b">f4"),
        "header": whole.replace(b"}", b" ", 1),
    }
    if damage in damaged:
        rows.write_bytes(damaged[damage])
    elif damage in ("entry.json", "a list"):
        about.write_text("{" if damage == "entry.json" else "[]")
    else:
        # As by a process that was killed while it removed it
        (rows if damage == "no rows" else about).unlink()
    with caplog.at_level(logging.WARNING):
        again = store.array("features", {}, SHAPE, "float32", counting(calls))
    assert caplog.messages == [f"{entry.folder} was damaged and is computed anew"]
    assert len(calls) == 2
    assert content(again) == expected


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    # 100 kB
    big = (1000, 25)
    store = FeatureCache(tmp_path / "kept", max_bytes=250_000)

    def produce(rows, _, __):
        rows[:] = 1
        yield len(rows)

    def names() -> set[str]:
        return {listed.identity["n"] for listed in store.entries()}

    for name in "ab":
        store.array("features", {"n": name}, big, "float32", produce)
        FeatureCache.release()
        time.sleep(0.02)
    # Used again: b is now the oldest
    store.array("features", {"n": "a"}, big, "float32", produce)
    FeatureCache.release()
    store.array("features", {"n": "c"}, big, "float32", produce)
    assert names() == {"a", "c"}
    # In use, like c
    store.array("features", {"n": "a"}, big, "float32", produce)
    store.array("features", {"n": "d"}, big, "float32", produce)
    assert names() == {"a", "c", "d"}
    FeatureCache.release()
    assert store.clear() == (3, 0)


def test_without_room_it_says_so_before_it_computes(store: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    calls: list[int] = []
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        UserError,
        match=r"has no room for 0\.0 GB of features \(No space left on device\)\. .* Type features\.dir=<folder>, ",
    ):
        store.array("features", {}, SHAPE, "float32", counting(calls))
    assert calls == []
    assert store.entries() == []


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file/kept cannot be written \(Not a directory\)\. .* Type features\.dir=<folder>\."
    ):
        FeatureCache(tmp_path / "file/kept", 1).array("features", {}, SHAPE, "float32", counting([]))


def _compute(root: Path, counter) -> None:
    calls: list[int] = []
    FeatureCache(root, 10**9).array("features", {}, SHAPE, "float32", counting(calls, delay=0.05))
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
    FeatureCache(root, 10**9).array("features", {}, SHAPE, "float32", counting([]))
    ready.set()
    leave.wait(30)


def test_what_another_process_uses_is_not_removed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    worker = context.Process(target=_hold, args=(tmp_path, ready, leave))
    worker.start()
    assert ready.wait(30)
    assert FeatureCache(tmp_path, 10**9).clear() == (0, 1)
    leave.set()
    worker.join(30)
    assert FeatureCache(tmp_path, 10**9).clear() == (1, 0)


# --- on storage that hosts share -------------------------------------------------------------------------------------------------------------


def test_a_file_system_where_locks_do_not_hold_is_refused_once_and_for_all(
    store: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fcntl.flock, list[int]()
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    for _ in range(2):
        with pytest.raises(
            UserError,
            match=(
                r"/kept is on a file system where locks do not hold\. Kept features need locks.*\. Type"
                r" features\.dir=<local folder>, or "
            ),
        ):
            store.array("features", {}, SHAPE, "float32", counting(calls))
    assert calls == []
    monkeypatch.setattr("fcntl.flock", real)
    store.array("features", {}, SHAPE, "float32", counting(calls))
    assert calls == [1]


def test_locks_are_asked_for_as_nfs_grants_them(store: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = fcntl.flock, set()

    def flock(file, operation: int) -> None:
        """NFS has byte-range locks, for which a file must be open in the way that it is locked."""
        asked.add(operation)
        if not (file.readable() if operation & fcntl.LOCK_SH else file.writable()):
            raise OSError(9, "Bad file descriptor")
        real(file, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    store.array("features", {}, SHAPE, "float32", counting([]))
    FeatureCache.release()
    assert store.clear() == (1, 0)
    assert asked == {fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH}


def test_rows_are_on_the_disk_before_another_host_can_see_them(
    store: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        "os.fsync", lambda number: happened.append(Path(os.readlink(f"/proc/self/fd/{number}")).name) or fsync(number)
    )
    monkeypatch.setattr(
        Path, "replace", lambda self, target: happened.append(f"to {target.name}") or replace(self, target)
    )
    folder = store.array("features", {}, SHAPE, "float32", counting([])).folder
    assert happened[-5:] == ["rows.npy", "to progress.json", "to entry.json", "entry.json", f"to {folder.name}"]


def test_who_has_waited_looks_at_the_folder_anew(store: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    flock, scandir, opened = fcntl.flock, os.scandir, FeatureCache._open
    monkeypatch.setattr("fcntl.flock", lambda *of: happened.append("locked") or flock(*of))
    monkeypatch.setattr("os.scandir", lambda *of: happened.append("looked") or scandir(*of))
    monkeypatch.setattr(FeatureCache, "_open", lambda *of: happened.append("opened") or opened(*of))
    store.array("features", {}, SHAPE, "float32", counting([]))
    at = happened.index("opened")
    assert happened[at - 1] == "looked"
    assert "locked" in happened[: at - 1]


ON_A_HOST = """
import socket, sys, time
from pathlib import Path
import numpy as np
from dogbreeds.kept import Store

socket.sethostname(sys.argv[2])
calls = []

def produce(rows, start, notes):
    calls.append(1)
    for first in range(start, len(rows), 10):
        rows[first : first + 10] = first
        time.sleep(0.1)
        yield first + 10

store = Store(Path(sys.argv[1]), 10**9)
print("ready", flush=True)
sys.stdin.readline()
print(socket.gethostname(), len(calls) or store.array("features", {}, (100, 4), "float32", produce).rows.sum(), len(calls))
"""


def _may_have_another_host_name() -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0
    return False


@pytest.mark.skipif(not _may_have_another_host_name(), reason="a process may not give itself another host name here")
def test_two_hosts_compute_once(tmp_path: Path) -> None:
    hosts = [
        subprocess.Popen(
            ["unshare", "--uts", sys.executable, "-c", ON_A_HOST, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(home())},
        )
        for name in ("one", "two")
    ]
    assert [host.stdout.readline() for host in hosts] == ["ready\n", "ready\n"]
    for host in hosts:
        host.stdin.write("\n")
        host.stdin.flush()
    said = sorted(host.communicate(timeout=60)[0].split() for host in hosts)
    assert [(name, total) for name, total, _ in said] == [("one", "18000.0"), ("two", "18000.0")]
    assert sorted(calls for _, _, calls in said) == ["0", "1"]


def test_what_is_being_computed_of_a_shard_stays_and_what_was_left_of_one_goes(store: FeatureCache) -> None:
    def rows(shard: Shard, **options):
        return store.array(
            "features", shard.identity({"a": 1}), (len(shard), 4), "float32", counting([], **options), step=10
        )

    rows(Shard(0, 50, 100, 10))
    with pytest.raises(RuntimeError):
        rows(Shard(50, 100, 100, 10), fail_at=20)
    store.array("features", {"a": 2}, SHAPE, "float32", counting([]), step=10)
    # The shards are another array's
    assert len(store.entries()) == 3
    FeatureCache.release()
    with open(store.root / f".{parts(store)[0].stem}.lock", "a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store.array("features", {"a": 1}, SHAPE, "float32", counting([]), step=10)
    assert sorted(listed.unfinished is None for listed in store.entries()) == [False, True, True]
    shutil.rmtree(store.root / f"features-{cache.digest({'a': 1})}")
    store.array("features", {"a": 1}, SHAPE, "float32", counting([]), step=10)
    assert parts(store) == []


def _peak_kib() -> int:
    """The most memory that this process has had; what `resource` gives, a process inherits from the one that began it."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def _joined_in(root: Path, memory) -> None:
    # 400 MB
    shape = (400, 250_000)
    half = Shard(0, 200, 400, 10)

    def produce(rows, start, notes):
        for first in range(start, len(rows), 10):
            rows[first : first + 10] = first
            yield first + 10

    store = FeatureCache(root, 10**10)
    store.array("features", half.identity({}), (200, shape[1]), "float32", produce, step=10)
    before = _peak_kib()
    store.array("features", {}, shape, "float32", produce, step=10)
    memory.value = _peak_kib() - before


def test_joining_takes_no_more_memory_than_computing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    memory = context.Value("i", -1)
    worker = context.Process(target=_joined_in, args=(tmp_path, memory))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    # KiB: of 400 MB, and a shard of 200
    assert 0 <= memory.value < 100_000
