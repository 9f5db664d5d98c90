"""Feature cache: arrays are computed once, resumed after any interruption, evicted, locked and joined from shards."""

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
from dogbreeds.features import memmap, partial_array
from dogbreeds.features.array_info import digest
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.memmap import CacheWriteError
from dogbreeds.features.partial_array import CachedArray, Shard

SHAPE = (100, 4)


def counting_producer(
    calls: list[int], delay: float = 0.0, fail_at: int | None = None, error: type[BaseException] = RuntimeError
):
    """Return a producer that computes ten rows a step and notes the first row of each step."""

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


def recording_start(started: list[int]):
    """Return a counting producer that records the row at which it starts."""

    def produce(rows, start, notes):
        started.append(start)
        yield from counting_producer([])(rows, start, notes)

    return produce


@pytest.fixture
def cache(tmp_path: Path):
    yield FeatureCache(tmp_path / "cache", max_bytes=10**9)
    FeatureCache.release()


def test_cache_computes_an_array_once_and_reads_it_back(cache: FeatureCache) -> None:
    calls: list[int] = []
    first = cache.get_or_compute("features", {"a": 1}, SHAPE, "float32", counting_producer(calls))
    again = cache.get_or_compute("features", {"a": 1}, SHAPE, "float32", counting_producer(calls))
    assert calls == [1]
    assert again.notes == {"computed": list(range(0, 100, 10))}
    assert np.array_equal(first.rows, again.rows)
    assert again.rows[:, 0].tolist() == list(range(100))
    assert not again.rows.flags.writeable
    cache.get_or_compute("features", {"a": 2}, SHAPE, "float32", counting_producer(calls))
    assert len(calls) == 2


def test_stream_yields_rows_while_they_are_computed(cache: FeatureCache) -> None:
    seen: list[int] = []

    def produce(rows, _, __):
        for start in range(0, 100, 10):
            rows[start : start + 10] = start
            seen.append(start)
            yield start + 10

    stream = cache.stream("photos", {}, SHAPE, "float32", produce, batch_size=20)
    assert next(stream).shape == (20, 4)
    assert seen == [0, 10]
    assert sum(len(batch) for batch in stream) == 80
    cached = [len(batch) for batch in cache.stream("photos", {}, SHAPE, "float32", produce, batch_size=30)]
    assert cached == [30, 30, 30, 10]
    assert len(seen) == 10


def entry_bytes(entry: CachedArray) -> tuple[bytes, str]:
    return (entry.folder / "rows.npy").read_bytes(), (entry.folder / "entry.json").read_text()


def partial_folders(cache: FeatureCache) -> list[Path]:
    return [path for path in cache.root.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_cache_resumes_at_the_last_completed_row_after_an_interruption(
    cache: FeatureCache, tmp_path: Path, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    expected = entry_bytes(
        FeatureCache(tmp_path / "other", 10**9).get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))
    )
    with pytest.raises(error):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50, error=error))
    (partial,) = partial_folders(cache)
    assert json.loads((partial / "progress.json").read_text())["done"] == 50
    assert [(info.name, info.identity, info.unfinished) for info in cache.entries()] == [(partial.name, {}, (50, 100))]
    started: list[int] = []
    entry = cache.get_or_compute("features", {}, SHAPE, "float32", recording_start(started))
    assert started == [50]
    assert caplog.messages == []
    assert entry_bytes(entry) == expected
    assert partial_folders(cache) == []


def test_notes_describe_the_completed_rows_after_an_interruption(cache: FeatureCache) -> None:
    def produce(rows, start, notes):
        yield from counting_producer([], fail_at=50)(rows[:50], start, notes)
        # Noted before its row is completed.
        notes["computed"].append(50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_compute("features", {}, SHAPE, "float32", produce)
    assert cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([])).notes == {
        "computed": list(range(0, 100, 10))
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError, CacheWriteError])
def test_cache_leaves_nothing_if_no_row_was_completed(cache: FeatureCache, error: type[BaseException]) -> None:
    with pytest.raises(error):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=0, error=error))
    assert partial_folders(cache) == []


@pytest.mark.parametrize("error", [FileNotFoundError, MissingFileError])
def test_cache_raises_a_producer_error_unchanged(cache: FeatureCache, error: type[OSError]) -> None:
    with pytest.raises(error, match=r"^interrupted$"):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50, error=error))


def test_cache_creates_no_entry_if_the_producer_ends_early(cache: FeatureCache) -> None:
    with pytest.raises(RuntimeError, match=r"the producer of .*/features-\w+ ended after 50 of 100 rows"):
        cache.get_or_compute(
            "features", {}, SHAPE, "float32", lambda rows, start, notes: counting_producer([])(rows[:50], start, notes)
        )
    assert [info.unfinished for info in cache.entries()] == [(50, 100)]


def test_stream_resumes_at_the_last_completed_row_after_it_was_closed(cache: FeatureCache) -> None:
    stream = cache.stream("features", {}, SHAPE, "float32", counting_producer([]), batch_size=20)
    next(stream)
    next(stream)
    stream.close()
    started: list[int] = []
    batches = list(cache.stream("features", {}, SHAPE, "float32", recording_start(started), batch_size=30, start=20))
    assert started == [40]
    assert [len(batch) for batch in batches] == [30, 30, 20]
    assert np.concatenate(batches)[:, 0].tolist() == list(range(20, 100))
    again = list(cache.stream("features", {}, SHAPE, "float32", recording_start(started), batch_size=30, start=20))
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]
    assert started == [40]


def test_stream_can_start_beyond_the_completed_rows(cache: FeatureCache) -> None:
    with pytest.raises(RuntimeError):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50))
    started: list[int] = []
    batches = list(cache.stream("features", {}, SHAPE, "float32", recording_start(started), batch_size=15, start=75))
    assert started == [50]
    assert np.concatenate(batches)[:, 0].tolist() == list(range(75, 100))


def test_cache_leaves_nothing_after_a_user_error(cache: FeatureCache) -> None:
    with pytest.raises(UserError):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50, error=UserError))
    assert partial_folders(cache) == []


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
def test_cache_recomputes_an_unfinished_array_that_is_damaged_or_does_not_match(
    cache: FeatureCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50), step=10)
    (partial,) = partial_folders(cache)
    if damage == "rows":
        rows = np.lib.format.open_memmap(partial / "rows.npy", mode="r+")
        rows[49, 3] += 1
        rows.flush()
    elif damage == "an end":
        (partial / "rows.npy").write_bytes((partial / "rows.npy").read_bytes()[:-1])
    elif damage == "progress":
        (partial / "progress.json").write_text('{"done": 5')
    elif damage == "brackets":
        (partial / "progress.json").write_text("[" * 100_000)
        assert [(info.identity, info.unfinished) for info in cache.entries()] == [({}, (0, 0))]
    elif damage == "no progress":
        (partial / "progress.json").unlink()
    elif damage in ("too many", "another identity"):
        progress = json.loads((partial / "progress.json").read_text())
        too_many = {"done": 500, "crc32": memmap.checksum(np.load(partial / "rows.npy"))}
        (partial / "progress.json").write_text(
            json.dumps(progress | (too_many if damage == "too many" else {"identity": {"a": 1}}))
        )
    step, shape = (20 if damage == "another step" else 10), ((90, 4) if damage == "another shape" else SHAPE)
    with caplog.at_level(logging.WARNING):
        entry = cache.get_or_compute("features", {}, shape, "float32", counting_producer([]), step=step)
    assert entry.notes["computed"] == list(range(0, shape[0], 10))
    if damage == "another step":
        assert caplog.messages == [
            f"{partial.name} was computed in batches of 10 rows, not 20: recomputing from the first row"
        ]
    elif damage == "no progress":
        assert caplog.messages == [f"{partial} has no progress.json: recomputing from the first row"]
    else:
        assert caplog.messages == [f"{partial} is damaged: recomputing from the first row"]
    assert np.array_equal(entry.rows[:, 0], np.arange(shape[0]))


def _killed_at(root: Path, at: int) -> None:
    """Compute, writing progress after every step, and die by SIGKILL at the given moment: a write, rename or step."""
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
        # Half of the file.
        file.write(json.dumps(about)[:20])
        file.flush()
        moment()
        file.seek(0)
        real_dump(about, file, **named)

    def produce(rows, start, notes):
        for done in counting_producer([])(rows, start, notes):
            moment()
            yield done

    Path.replace, json.dump = replace, dump  # type: ignore[method-assign,assignment]
    FeatureCache(root, 10**9).get_or_compute("features", {}, SHAPE, "float32", produce, step=10)
    os._exit(7)


def test_cache_resumes_to_the_same_bytes_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    expected = entry_bytes(
        FeatureCache(tmp_path / "whole", 10**9).get_or_compute(
            "features", {}, SHAPE, "float32", counting_producer([]), step=10
        )
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
        entry = FeatureCache(root, 10**9).get_or_compute(
            "features", {}, SHAPE, "float32", recording_start(began), step=10
        )
        assert entry_bytes(entry) == expected
        assert partial_folders(FeatureCache(root, 10**9)) == []
    assert at > 40
    # The later it was killed, the fewer rows were recomputed.
    assert began == sorted(began)
    # Killed between the last row and the final rename: no row was recomputed.
    assert set(began) == set(range(0, 100, 10))
    FeatureCache.release()


def _hang(root: Path, ready) -> None:
    def produce(rows, start, notes):
        for done in counting_producer([])(rows, start, notes):
            yield done
            if done == 50:
                ready.set()
                time.sleep(60)

    partial_array._PROGRESS_SECONDS = 0.0
    FeatureCache(root, 10**9).get_or_compute("features", {}, SHAPE, "float32", produce)


def test_waiting_process_resumes_where_another_was_killed_and_clear_leaves_its_array(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_hang, args=(tmp_path, ready))
    worker.start()
    assert ready.wait(30)
    cache = FeatureCache(tmp_path, 10**9)
    # The worker is computing it.
    assert cache.clear() == (0, 1)
    threading.Timer(0.3, worker.kill).start()
    started: list[int] = []
    entry = cache.get_or_compute("features", {}, SHAPE, "float32", recording_start(started))
    worker.join(30)
    assert worker.exitcode == -signal.SIGKILL
    assert started == [50]
    assert entry.notes == {"computed": list(range(0, 100, 10))}
    FeatureCache.release()


def test_one_process_recomputes_an_array_that_was_deleted_while_in_use(tmp_path: Path) -> None:
    cache, calls = FeatureCache(tmp_path, 10**9), list[int]()
    shutil.rmtree(cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([])).folder)
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    worker = context.Process(target=_compute, args=(tmp_path, counter))
    worker.start()
    while worker.is_alive() and not partial_folders(cache):
        time.sleep(0.01)
    entry = cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    worker.join(30)
    assert (worker.exitcode, counter.value, calls) == (0, 1, [])
    assert entry.rows[:, 0].tolist() == list(range(100))
    FeatureCache.release()


def test_cache_clears_and_evicts_unfinished_arrays_like_entries(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 10**9)
    with pytest.raises(RuntimeError):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50))
    assert cache.clear() == (1, 0)
    with pytest.raises(RuntimeError):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50))
    small = FeatureCache(tmp_path, 1000)
    small.get_or_compute("features", {"another": 1}, (10, 4), "float32", counting_producer([]))
    assert partial_folders(small) == []
    assert [info.identity for info in small.entries()] == [{"another": 1}]
    FeatureCache.release()


def test_cache_evicts_the_latest_unfinished_array_last(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 10**9)
    for name in "abc":
        with pytest.raises(RuntimeError):
            cache.get_or_compute("features", {"n": name}, SHAPE, "float32", counting_producer([], fail_at=50))
        time.sleep(0.02)
    FeatureCache(tmp_path, 4000).get_or_compute("features", {"n": "d"}, (10, 4), "float32", counting_producer([]))
    assert [info.identity["n"] for info in cache.entries()] == ["d", "c", "b"]
    FeatureCache.release()


def test_cache_lists_and_clears_damaged_leftovers_and_leaves_other_folders(cache: FeatureCache) -> None:
    for name in (
        "features-" + 24 * "a" + ".part",
        ".features-" + 24 * "b" + ".part-0123abcd",
        "photos-" + 24 * "c",
        "film.part",
        "notes",
    ):
        (cache.root / name).mkdir(parents=True)
        (cache.root / name / "rows.npy").write_bytes(b"x" * 1000)
    (cache.root / ("features-" + 24 * "a" + ".part") / "progress.json").write_text('{"identity"')
    (cache.root / "notes/entry.json").write_text("{}")
    # Its identity is not the one that its folder is named after.
    (cache.root / ("photos-" + 24 * "c") / "entry.json").write_text('{"identity": {"s1ze": 64}}')
    found = {info.name: (info.size_bytes, info.identity, info.unfinished) for info in cache.entries()}
    assert found == {
        "features-" + 24 * "a" + ".part": (1000, {}, (0, 0)),
        ".features-" + 24 * "b" + ".part-0123abcd": (1000, {}, (0, 0)),
        "photos-" + 24 * "c": (1000, {}, None),
    }
    assert cache.clear() == (3, 0)
    assert sorted(path.name for path in cache.root.iterdir() if path.is_dir()) == ["film.part", "notes"]


def test_cache_reports_a_full_disk_while_writing_progress_and_resumes(cache: FeatureCache) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def produce(rows, start, notes):
        notes["skipped"] = list(range(10_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        yield len(rows)

    try:
        with pytest.raises(
            UserError,
            match=(
                r"progress\.json cannot be written \(File too large\)\. .* on a disk with free space\. Set"
                r" features\.dir=<folder>, .*the same command"
            ),
        ):
            cache.get_or_compute("features", {}, SHAPE, "float32", produce)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [sorted(file.name for file in partial.iterdir()) for partial in partial_folders(cache)] == [
        ["progress.json", "rows.npy"]
    ]
    assert cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([])).notes["computed"][-1] == 90


def test_cache_preserves_completed_rows_if_a_nested_array_has_no_room(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def produce(rows, start, notes):
        for done in counting_producer([])(rows, start, notes):
            if done == 60:
                monkeypatch.setattr("os.posix_fallocate", full)
                cache.get_or_compute("photos", {}, SHAPE, "float32", counting_producer([]))
            yield done

    with pytest.raises(UserError, match=r"has no room for [\d.]+ KB of features"):
        cache.get_or_compute("features", {}, SHAPE, "float32", produce)
    assert [(info.name.split("-")[0], info.unfinished) for info in cache.entries()] == [("features", (50, 100))]


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    """Drop the rights of root, who may write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder whose permissions a test may change; the folders above it may be traversed by anyone."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        os.chmod(name, 0o755)
        FeatureCache.release()


def test_cache_rejects_a_read_only_folder(closed: Path) -> None:
    calls: list[int] = []
    closed.chmod(0o555)
    with (
        _as_nobody(),
        pytest.raises(
            UserError,
            match=r"/\.features-\w+\.lock cannot be written \(Permission denied\)\. .*\. Set features\.dir=<folder>",
        ),
    ):
        FeatureCache(closed, 1).get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    assert calls == []
    closed.chmod(0o755)
    FeatureCache(closed, 10**9).get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    FeatureCache.release()
    closed.chmod(0o555)
    for file in closed.glob(".*"):
        file.chmod(0o444)
    with _as_nobody():
        assert [info.unfinished for info in FeatureCache(closed, 1).entries()] == [None]
        with pytest.raises(
            UserError, match=r"/features-\w+ cannot be written \(Permission denied\)\. .* Set features\.dir="
        ):
            FeatureCache(closed, 1).clear()
    assert calls == [1]


def test_cache_rejects_an_entry_whose_time_cannot_be_set(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.utime", denied)
    with pytest.raises(
        UserError,
        match=(
            r"/features-\w+ cannot be written \(Operation not permitted\)\. .*\. Set"
            r" features\.dir=<folder>"
        ),
    ):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))


def test_cache_rejects_an_unfinished_array_of_another_user_and_leaves_it(closed: Path) -> None:
    cache = FeatureCache(closed, 10**9)
    with pytest.raises(RuntimeError):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50))
    (partial,) = partial_folders(cache)
    for path in (closed, *closed.glob(".*")):
        path.chmod(0o777)
    (partial / "rows.npy").chmod(0o444)
    with (
        _as_nobody(),
        pytest.raises(
            UserError,
            match=r"/features-\w+\.part cannot be written \(Permission denied\)\. .*\. Set features\.dir=<folder>",
        ),
    ):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))
    assert [info.unfinished for info in cache.entries()] == [(50, 100)]


def test_cache_ignores_arrays_it_may_not_read(closed: Path) -> None:
    cache = FeatureCache(closed, max_bytes=1)
    with pytest.raises(RuntimeError):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([], fail_at=50))
    (partial,) = partial_folders(cache)
    partial.chmod(0)
    closed.chmod(0o777)
    with _as_nobody():
        assert cache.entries() == []
        # It evicts what it may.
        cache.get_or_compute("features", {"mine": 1}, SHAPE, "float32", counting_producer([]))
        assert [info.identity for info in cache.entries()] == [{"mine": 1}]
    partial.chmod(0o755)
    assert (partial / "progress.json").exists()


def test_cache_rejects_a_file_system_without_locks(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", without)
    with pytest.raises(
        UserError,
        match=(
            r"/\.features-\w+\.lock cannot be written \(No locks available\)\. .*\. Set"
            r" features\.dir=<folder>"
        ),
    ):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))
    assert partial_folders(cache) == []


@pytest.mark.parametrize(
    "damage", ["a bit", "an end", "all", "byte order", "header", "entry.json", "a list", "no entry.json", "no rows"]
)
def test_cache_detects_a_damaged_array_and_recomputes_it(
    cache: FeatureCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    entry = cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    expected = entry_bytes(entry)
    FeatureCache.release()
    # As in another process.
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
        # As left by a process that was killed while it removed the entry.
        (rows if damage == "no rows" else about).unlink()
    with caplog.at_level(logging.WARNING):
        again = cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    assert caplog.messages == [f"{entry.folder} is damaged: recomputing it"]
    assert len(calls) == 2
    assert entry_bytes(again) == expected


def test_cache_evicts_the_least_recently_used_array_that_is_not_in_use(tmp_path: Path) -> None:
    # 100 kB.
    big = (1000, 25)
    cache = FeatureCache(tmp_path / "cache", max_bytes=250_000)

    def produce(rows, _, __):
        rows[:] = 1
        yield len(rows)

    def names() -> set[str]:
        return {info.identity["n"] for info in cache.entries()}

    for name in "ab":
        cache.get_or_compute("features", {"n": name}, big, "float32", produce)
        FeatureCache.release()
        time.sleep(0.02)
    # Used again: b is now the least recently used.
    cache.get_or_compute("features", {"n": "a"}, big, "float32", produce)
    FeatureCache.release()
    cache.get_or_compute("features", {"n": "c"}, big, "float32", produce)
    assert names() == {"a", "c"}
    # In use, like c.
    cache.get_or_compute("features", {"n": "a"}, big, "float32", produce)
    cache.get_or_compute("features", {"n": "d"}, big, "float32", produce)
    assert names() == {"a", "c", "d"}
    FeatureCache.release()
    assert cache.clear() == (3, 0)


def test_cache_reports_a_full_disk_before_computing(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    calls: list[int] = []
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        UserError,
        match=(
            r"has no room for [\d.]+ KB of features \(No space left on device\)\. .* Set features\.dir=<folder>, or"
            r" features\.dtype=float16 .* make clear"
        ),
    ):
        cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    assert calls == []
    assert cache.entries() == []


def test_cache_rejects_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file/cache cannot be written \(Not a directory\)\. .* Set features\.dir=<folder>"
    ):
        FeatureCache(tmp_path / "file/cache", 1).get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))


def _compute(root: Path, counter) -> None:
    calls: list[int] = []
    FeatureCache(root, 10**9).get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls, delay=0.05))
    with counter.get_lock():
        counter.value += len(calls)


def test_one_process_computes_an_array_while_others_wait(tmp_path: Path) -> None:
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
    FeatureCache(root, 10**9).get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))
    ready.set()
    leave.wait(30)


def test_clear_leaves_an_array_that_another_process_uses(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    worker = context.Process(target=_hold, args=(tmp_path, ready, leave))
    worker.start()
    assert ready.wait(30)
    assert FeatureCache(tmp_path, 10**9).clear() == (0, 1)
    leave.set()
    worker.join(30)
    assert FeatureCache(tmp_path, 10**9).clear() == (1, 0)


# --- storage that several hosts share ----------------------------------------


def test_cache_rejects_a_file_system_where_locks_do_not_hold(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fcntl.flock, list[int]()
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    for _ in range(2):
        with pytest.raises(
            UserError,
            match=(
                r"/cache is on a file system where locks do not hold\. .* needs locks.*\. Set"
                r" features\.dir=<local folder>, or "
            ),
        ):
            cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    assert calls == []
    monkeypatch.setattr("fcntl.flock", real)
    cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer(calls))
    assert calls == [1]


def test_cache_opens_files_for_the_locks_as_nfs_requires(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = fcntl.flock, set()

    def flock(file, operation: int) -> None:
        """NFS maps flock to byte-range locks: a shared one needs a readable file, an exclusive one a writable file."""
        asked.add(operation)
        if not (file.readable() if operation & fcntl.LOCK_SH else file.writable()):
            raise OSError(9, "Bad file descriptor")
        real(file, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))
    FeatureCache.release()
    assert cache.clear() == (1, 0)
    assert asked == {fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB}


def test_cache_flushes_rows_to_disk_before_publishing_an_entry(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        "os.fsync", lambda number: happened.append(Path(os.readlink(f"/proc/self/fd/{number}")).name) or fsync(number)
    )
    monkeypatch.setattr(
        Path, "replace", lambda self, target: happened.append(f"to {target.name}") or replace(self, target)
    )
    folder = cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([])).folder
    assert happened[-5:] == ["rows.npy", "to progress.json", "aside", "to entry.json", f"to {folder.name}"]


def test_cache_rereads_the_folder_after_waiting_for_a_lock(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    flock, scandir, opened = fcntl.flock, os.scandir, FeatureCache._open
    monkeypatch.setattr("fcntl.flock", lambda *of: happened.append("locked") or flock(*of))
    monkeypatch.setattr("os.scandir", lambda *of: happened.append("looked") or scandir(*of))
    monkeypatch.setattr(FeatureCache, "_open", lambda *of: happened.append("opened") or opened(*of))
    cache.get_or_compute("features", {}, SHAPE, "float32", counting_producer([]))
    at = happened.index("opened")
    assert happened[at - 1] == "looked"
    assert "locked" in happened[: at - 1]


ON_A_HOST = """
import socket, sys, time
from pathlib import Path
import numpy as np
from dogbreeds.features.cache import FeatureCache

socket.sethostname(sys.argv[2])
calls = []

def produce(rows, start, notes):
    calls.append(1)
    for first in range(start, len(rows), 10):
        rows[first : first + 10] = first
        time.sleep(0.1)
        yield first + 10

cache = FeatureCache(Path(sys.argv[1]), 10**9)
print("ready", flush=True)
sys.stdin.readline()
rows = cache.get_or_compute("features", {}, (100, 4), "float32", produce).rows
print(socket.gethostname(), rows.sum(), len(calls))
"""


def _can_set_a_host_name() -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0
    return False


@pytest.mark.skipif(not _can_set_a_host_name(), reason="unshare --uts is not permitted here")
def test_one_of_two_hosts_computes_an_array(tmp_path: Path) -> None:
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
    answers = sorted(host.communicate(timeout=60)[0].split() for host in hosts)
    assert [(name, total) for name, total, _ in answers] == [("one", "18000.0"), ("two", "18000.0")]
    assert sorted(calls for _, _, calls in answers) == ["0", "1"]


def test_cache_removes_unfinished_shards_unless_a_process_computes_them(cache: FeatureCache) -> None:
    def rows(shard: Shard, **options):
        return cache.get_or_compute(
            "features", shard.identity({"a": 1}), (len(shard), 4), "float32", counting_producer([], **options), step=10
        )

    rows(Shard(0, 50, 100, 10))
    with pytest.raises(RuntimeError):
        rows(Shard(50, 100, 100, 10), fail_at=20)
    cache.get_or_compute("features", {"a": 2}, SHAPE, "float32", counting_producer([]), step=10)
    # The shards belong to another array.
    assert len(cache.entries()) == 3
    FeatureCache.release()
    with open(cache.root / f".{partial_folders(cache)[0].stem}.lock", "a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.get_or_compute("features", {"a": 1}, SHAPE, "float32", counting_producer([]), step=10)
    assert sorted(info.unfinished is None for info in cache.entries()) == [False, True, True]
    shutil.rmtree(cache.root / f"features-{digest({'a': 1})}")
    cache.get_or_compute("features", {"a": 1}, SHAPE, "float32", counting_producer([]), step=10)
    assert partial_folders(cache) == []


def _peak_kib() -> int:
    """Return the peak memory of this process; the value from `resource` is inherited from the parent process."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def _joined_in(root: Path, memory) -> None:
    # 400 MB.
    shape = (400, 250_000)
    half = Shard(0, 200, 400, 10)

    def produce(rows, start, notes):
        for first in range(start, len(rows), 10):
            rows[first : first + 10] = first
            yield first + 10

    cache = FeatureCache(root, 10**10)
    cache.get_or_compute("features", half.identity({}), (200, shape[1]), "float32", produce, step=10)
    before = _peak_kib()
    cache.get_or_compute("features", {}, shape, "float32", produce, step=10)
    memory.value = _peak_kib() - before


@pytest.mark.slow
def test_joining_shards_takes_bounded_memory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    memory = context.Value("i", -1)
    worker = context.Process(target=_joined_in, args=(tmp_path, memory))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    # In KiB; the array has 400 MB and its shard 200 MB.
    assert 0 <= memory.value < 100_000
