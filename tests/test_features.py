"""Feature extraction: equal to plain Keras, computed once, resumed after any interruption, and joined from shards."""

import functools
import io
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core import console
from dogbreeds.core.errors import UserError
from dogbreeds.data.augment import Guide, Plain
from dogbreeds.data.dataset import Source
from dogbreeds.data.folder import Folder
from dogbreeds.data.image import UnreadableImageError
from dogbreeds.data.miniature import Miniature
from dogbreeds.features import partial_array
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import AugmentedView, DecodedImages, compute_features
from dogbreeds.features.features import UNSHARDED, Features, ShardSpec
from dogbreeds.models.assembly import assemble
from dogbreeds.models.model import Miniature as MiniatureModel
from dogbreeds.models.network import Prefix
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import Blocks, Nothing
from tests.feature_settings import feature_settings, miniature_data

MODES = {"batchnorm": "frozen", "drop_connect": "off"}
DATA = miniature_data(3)


def settings(place: Path, batch: int | None = 16) -> Features:
    return feature_settings(place, batch)


@pytest.fixture
def features(tmp_path: Path):
    yield settings(tmp_path / "cache")
    FeatureCache.release()


@functools.cache
def prefix(mode: str = "raw", policy=None) -> Prefix:
    """Build the miniature's frozen part; cached, so that each is compiled once."""
    backbone = MiniatureModel(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    plan = (policy or Nothing(**MODES)).plan(backbone.blocks)
    return assemble(backbone, Preprocessing(mode=mode), plan, lambda features: None).prefix  # type: ignore[arg-type,return-value]


def plain_keras(pixels: np.ndarray, mode: str = "raw") -> np.ndarray:
    """Compute the reference with plain Keras layers: preprocessing, backbone and pooling in inference mode."""
    import keras

    network = MiniatureModel(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0).network
    inputs = pixels.astype(np.float32)
    if mode != "raw":
        inputs = keras.applications.imagenet_utils.preprocess_input(inputs.copy(), mode=mode)
    return np.asarray(network(inputs, training=False)).mean(axis=(1, 2))


@pytest.mark.parametrize("mode", [pytest.param("raw", marks=pytest.mark.slow), "torch"])
def test_features_equal_those_of_plain_keras(features: Features, mode: str) -> None:
    source = DATA.open().train.source
    cached = compute_features(prefix(mode), DecodedImages(source, DATA, 64, features.open_cache()), features)
    pixels = np.stack([load() for load in source.loaders()])
    assert cached.shape == (30, 640)
    assert np.allclose(cached, plain_keras(pixels, mode), atol=1e-4, rtol=1e-4)


def test_images_and_features_are_computed_once(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    source, reads, computed = DATA.open().train.source, [], []
    counted = Source(
        source.name,
        source.labels,
        source.ids,
        source.digests,
        source.fingerprint,
        lambda: reads.append(1) or source.loaders(),
    )
    images = DecodedImages(counted, DATA, 64, features.open_cache())
    built = prefix()
    run = built.compiled
    monkeypatch.setitem(built.__dict__, "compiled", lambda pixels: computed.append(len(pixels)) or run(pixels))
    first = compute_features(built, images, features)
    again = compute_features(built, images, features)
    assert np.array_equal(first, again)
    assert sum(computed) == 30
    compute_features(prefix("torch"), images, features)
    compute_features(prefix(policy=Blocks(top=1, names=(), **MODES)), images, features)
    # Other preprocessing and another cut need other features, but the same images.
    assert reads == [1]


def test_float16_features_take_half_the_bytes_and_stay_close(features: Features) -> None:
    half = replace(features, dtype="float16")
    images = DecodedImages(DATA.open().train.source, DATA, 64, features.open_cache())
    single, rounded = compute_features(prefix(), images, features), compute_features(prefix(), images, half)
    assert rounded.dtype == np.float16
    assert rounded.nbytes * 2 == single.nbytes
    assert np.allclose(single, rounded, rtol=1e-3, atol=1e-3)


def test_features_of_a_view_are_those_of_the_augmented_images(features: Features) -> None:
    source = DATA.open().train.source
    augment = Guide(
        copies=2, rotation_degrees=20, horizontal_flip=True, shear_radians=0.15, shift_fraction=0.2, zoom_fraction=0.2,
        brightness_fraction=0.2, contrast_fraction=0.2,
    )  # fmt: skip
    rows = np.array([1, 4, 9, 20])
    images = DecodedImages(source, DATA, 64, features.open_cache())
    cached = compute_features(prefix(), images, features, AugmentedView(augment, 1, 7, rows))
    pixels = np.stack([load() for load in source.loaders()])[rows]
    assert np.allclose(cached, plain_keras(augment.apply(pixels, rows, 1, 7)), atol=1e-4, rtol=1e-4)
    other = compute_features(prefix(), images, features, AugmentedView(augment, 0, 7, rows))
    assert not np.allclose(cached, other, atol=1e-2)
    plain = compute_features(prefix(), images, features, AugmentedView(Plain(), 0, 7, rows))
    assert np.allclose(plain, compute_features(prefix(), images, features)[rows], atol=1e-4)


@pytest.mark.parametrize("on_corrupt", ["stop", "skip"])
def test_truncated_image_is_rejected_or_skipped(
    write_images: Callable[..., Path], features: Features, on_corrupt: str
) -> None:
    root = write_images(train=20)
    path = root / "train/breed_1/3.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    data = Folder(
        root=str(root),
        val_fraction=0.2,
        split_seed=0,
        resize="stretch",
        decoder="pillow",
        on_corrupt=on_corrupt,
        max_corrupt_fraction=0.05,
    )
    source = data.open().train.source
    images = DecodedImages(source, data, 64, features.open_cache())
    if on_corrupt == "stop":
        with pytest.raises(UnreadableImageError, match=r"train/breed_1/3\.jpg cannot be read as an image"):
            compute_features(prefix(), images, features)
        assert features.open_cache().entries() == []
        return
    compute_features(prefix(), images, features)
    bad = source.ids.index("train/breed_1/3.jpg")
    assert images.skipped_rows() == {bad}
    split = data.open().train
    assert len(split.without(images.skipped_rows()).rows) == len(split.rows) - (bad in split.rows)
    strict = Folder(
        root=str(root),
        val_fraction=0.2,
        split_seed=0,
        resize="pad",
        decoder="pillow",
        on_corrupt="skip",
        max_corrupt_fraction=0.01,
    )
    with pytest.raises(
        UserError, match=r"1 of 60 images of train cannot be read\. data\.max_corrupt_fraction allows 0\.01 of them\."
    ):
        compute_features(prefix(), DecodedImages(source, strict, 64, features.open_cache()), features)


# --- interruptions -----------------------------------------------------------
# Images and frozen part are plain NumPy, so that a process can be killed and restarted in milliseconds.

NUM_IMAGES = 150
BAD = (40, 77, 141)
SKIPPING = miniature_data(15, on_corrupt="skip", max_corrupt_fraction=0.1)


class RecordingPrefix:
    """A source and a frozen part that record their calls; each output depends on all images of its batch."""

    def __init__(self, at: Callable[[str, int], None] = lambda kind, row: None, bad: tuple[int, ...] = BAD) -> None:
        self.decoded: list[int] = []
        self.batches: list[int] = []
        self.at, self.bad = at, bad
        self.shape, self.fingerprint = (12,), "plain"
        self.runtime, self.precision = "tensorflow", "float32"
        ids = tuple(str(row) for row in range(NUM_IMAGES))
        self.source = Source("train", np.zeros(NUM_IMAGES, np.int32), ids, ids, "drawn", self._read)

    def _read(self) -> Iterator[Callable[[], np.ndarray]]:
        return (functools.partial(self._decode, row) for row in range(NUM_IMAGES))

    def _decode(self, row: int) -> np.ndarray:
        self.at("image", row)
        self.decoded.append(row)
        if row in self.bad:
            raise UnreadableImageError(f"{row} cannot be read as an image. Images must be complete. Replace it.")
        return np.random.default_rng(row).integers(0, 256, (4, 4, 3), dtype=np.uint8)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        yield from map(self.run, batches)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self.at("batch", len(self.batches))
        self.batches.append(len(pixels))
        flat = pixels.reshape(len(pixels), -1).astype(np.float32)
        return flat[:, :12] * flat.mean()

    def batch_size(self) -> int:
        return 16

    def compute(
        self,
        place: Path,
        batch: int | None = None,
        view: AugmentedView | None = None,
        shard_spec: ShardSpec = UNSHARDED,
    ) -> np.ndarray:
        features = settings(place, batch)
        return compute_features(self, self.images(place), features, view, shard_spec)  # type: ignore[arg-type]

    def images(self, place: Path, data: Miniature = SKIPPING) -> DecodedImages:
        return DecodedImages(self.source, data, 4, FeatureCache(place, 10**9))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write the progress after each step instead of each second."""
    monkeypatch.setattr(partial_array, "_PROGRESS_SECONDS", 0.0)
    yield
    FeatureCache.release()


def cache_files(place: Path) -> dict[str, bytes]:
    """Return the files of all entries."""
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in sorted(place.glob("*/*"))}


def unfinished_rows(place: Path) -> dict[str, int]:
    """Return the number of complete rows of each unfinished array, by its kind."""
    listed = FeatureCache(place, 1).entries()
    return {entry.name.split("-")[0]: entry.unfinished[0] for entry in listed if entry.unfinished is not None}


def completed_rows(place: Path, kind: str) -> int:
    """Return the number of complete rows of an array."""
    return NUM_IMAGES if list(place.glob(f"{kind}-*[0-9a-f]")) else unfinished_rows(place).get(kind, 0)


# Moments other than the decoding of an image.
WRITING = ("batch", "note", "rename", "renamed")


def _killed_at(place: Path, moment: int, kinds: tuple[str, ...]) -> None:
    """Compute features, and die by SIGKILL at the given moment of these kinds."""
    passed = itertools.count(1)

    def at(kind: str, _: int = 0) -> None:
        if kind in kinds and next(passed) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    real_replace, real_dump = Path.replace, json.dump

    def replace(self: Path, target: Path) -> None:
        at("rename")
        real_replace(self, target)
        at("renamed")

    def dump(about: dict, file, **named: int) -> None:
        file.write("{")
        file.flush()
        at("note")
        file.seek(0)
        real_dump(about, file, **named)

    Path.replace, json.dump = replace, dump  # type: ignore[method-assign,assignment]
    RecordingPrefix(at).compute(place)
    os._exit(7)


def is_killed_at(place: Path, moment: int, kinds: tuple[str, ...]) -> bool:
    """Compute features in another process that is killed at a moment; return whether that moment came."""
    worker = multiprocessing.get_context("fork").Process(target=_killed_at, args=(place, moment, kinds))
    worker.start()
    worker.join(60)
    assert worker.exitcode in (7, -signal.SIGKILL)
    return worker.exitcode != 7


@pytest.mark.slow
def test_images_and_features_resume_to_the_same_bytes_after_a_kill_at_any_moment(plain: None, tmp_path: Path) -> None:
    RecordingPrefix().compute(tmp_path / "whole")
    expected = cache_files(tmp_path / "whole")
    assert {(name.split("-")[0], Path(name).name) for name in expected} == {
        (kind, name) for kind in ("photos", "features") for name in ("entry.json", "rows.npy")
    }
    saved = {kind: set() for kind in ("photos", "features")}
    for kinds, moment in itertools.chain(
        ((("image",), at) for at in range(1, NUM_IMAGES, 37)), ((WRITING, at) for at in itertools.count(1, 3))
    ):
        place = tmp_path / f"{kinds[0]}-{moment}"
        if not is_killed_at(place, moment, kinds):
            break
        before, again = {kind: completed_rows(place, kind) for kind in saved}, RecordingPrefix()
        again.compute(place)
        assert again.images(place).skipped_rows() == set(BAD)
        assert cache_files(place) == expected
        assert (len(again.decoded), sum(again.batches)) == (
            NUM_IMAGES - before["photos"],
            NUM_IMAGES - before["features"],
        )
        for kind in saved:
            saved[kind].add(before[kind])
        FeatureCache.release()
    assert moment > 60
    assert saved == {"photos": {0, 32, 64, 96, 128, 150}, "features": {*range(0, 150, 16), 150}}


def test_extraction_finishes_despite_repeated_kills(plain: None, tmp_path: Path) -> None:
    RecordingPrefix().compute(tmp_path / "whole")
    place, before, kills = tmp_path / "killed", -1, 0
    while is_killed_at(place, 25, WRITING):
        assert completed_rows(place, "features") > before
        before, kills = completed_rows(place, "features"), kills + 1
    assert kills > 2
    assert cache_files(place) == cache_files(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["image", "batch"])
def test_interruption_preserves_completed_images_and_features(
    plain: None, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    # No progress is written before the interruption.
    monkeypatch.setattr(partial_array, "_PROGRESS_SECONDS", 3600.0)

    def at(what: str, row: int) -> None:
        if what == kind and row == {"image": 100, "batch": 5}[kind]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interruption:
        RecordingPrefix(at).compute(tmp_path / "cut")
    # The traceback keeps the frames alive, and with them the generators that were running.
    assert interruption.tb is not None
    assert unfinished_rows(tmp_path / "cut") == (
        {"photos": 96, "features": 96} if kind == "image" else {"photos": 96, "features": 80}
    )
    again = RecordingPrefix()
    monkeypatch.setattr(console, "_LOG_INTERVAL_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        again.compute(tmp_path / "cut")
    assert sorted(again.decoded) == list(range(96, NUM_IMAGES))
    assert again.batches == ([16] * 3 + [6] if kind == "image" else [16] * 4 + [6])
    assert f"images of train: resuming at row 96 of {NUM_IMAGES}" in caplog.messages
    assert f"features of train: resuming at row {96 if kind == 'image' else 80} of {NUM_IMAGES}" in caplog.messages
    first, *_ = [message for message in caplog.messages if " images/s, " in message]
    assert first.startswith(f"features of train: {112 if kind == 'image' else 96} of {NUM_IMAGES}, ")
    RecordingPrefix().compute(tmp_path / "whole")
    assert cache_files(tmp_path / "cut") == cache_files(tmp_path / "whole")


def interrupted(place: Path, batch: int | None = None) -> None:
    """Interrupt the computation after five batches of features."""

    def at(what: str, row: int) -> None:
        if what == "batch" and row == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RecordingPrefix(at).compute(place, batch)


def test_features_are_recomputed_if_the_batch_size_changed(
    plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path / "cut", 8)
    again = RecordingPrefix()
    again.compute(tmp_path / "cut", 20)
    assert again.batches == [20] * 7 + [10]
    # Images do not depend on the batch size.
    assert min(again.decoded) == 64
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.split(" was ")[1] == "computed in batches of 8 rows, not 20: recomputing from the first row"
    RecordingPrefix().compute(tmp_path / "whole", 20)
    assert cache_files(tmp_path / "cut") == cache_files(tmp_path / "whole")


def test_damaged_images_are_decoded_again_while_features_resume(plain: None, tmp_path: Path) -> None:
    interrupted(tmp_path / "cut")
    (partial,) = (tmp_path / "cut").glob("photos-*.part")
    (partial / "rows.npy").write_bytes(b"")
    again = RecordingPrefix()
    again.compute(tmp_path / "cut")
    assert sorted(again.decoded) == list(range(NUM_IMAGES))
    assert sum(again.batches) == NUM_IMAGES - 80
    RecordingPrefix().compute(tmp_path / "whole")
    assert cache_files(tmp_path / "cut") == cache_files(tmp_path / "whole")


def test_features_of_a_view_resume_after_an_interruption(plain: None, tmp_path: Path) -> None:
    view = AugmentedView(Plain(), 0, 7, np.arange(0, NUM_IMAGES, 2))

    def at(what: str, row: int) -> None:
        if what == "batch" and row == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RecordingPrefix(at).compute(tmp_path / "cut", view=view)
    again = RecordingPrefix()
    again.compute(tmp_path / "cut", view=view)
    assert (again.decoded, again.batches) == ([], [16, 16, 11])
    RecordingPrefix().compute(tmp_path / "whole", view=view)
    assert cache_files(tmp_path / "cut") == cache_files(tmp_path / "whole")


def test_unreadable_image_leaves_neither_images_nor_features(plain: None, tmp_path: Path) -> None:
    broken = RecordingPrefix(bad=(100,))
    features = settings(tmp_path)
    strict = miniature_data(15, max_corrupt_fraction=0.1)
    with pytest.raises(UnreadableImageError, match=r"^100 cannot be read as an image"):
        compute_features(broken, broken.images(tmp_path, strict), features)  # type: ignore[arg-type]
    assert sum(broken.batches) > 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_skipped_row_is_black_even_if_an_interrupted_process_wrote_it(plain: None, tmp_path: Path) -> None:
    interrupted(tmp_path)
    (partial,) = tmp_path.glob("photos-*.part")
    rows = np.lib.format.open_memmap(partial / "rows.npy", mode="r+")
    # Beyond the completed rows.
    rows[BAD[-1]] = 9
    rows.flush()
    RecordingPrefix().compute(tmp_path)
    assert not RecordingPrefix().images(tmp_path).rows()[BAD[-1]].any()


def test_progress_lines_count_resumed_units_in_the_total_and_not_in_the_rate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 20)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO), console.progress("features", 1_000, "images", completed=600) as advance:
        advance(100)
        advance(300)
    assert caplog.messages == ["features: 700 of 1,000, 5 images/s, 60 s left", "features: 400 in 60.0 s, 7 images/s"]


def test_progress_bar_starts_at_the_resumed_units(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(console.sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    with console.progress("features", 1_000, "images", completed=600) as advance:
        advance(400)
    assert "600/1000" in screen.getvalue()
    assert "1000/1000" in screen.getvalue()
    assert "400/1000" not in screen.getvalue()


# --- shards ------------------------------------------------------------------

EVEN_ROWS = AugmentedView(Plain(), 0, 7, np.arange(0, NUM_IMAGES, 2))


def compute_shards(
    place: Path,
    shards: int,
    left_out: tuple[int, ...] = (),
    view: AugmentedView | None = None,
    batch: int | None = None,
) -> list[int]:
    """Compute the shards, the last first. Return the rows of the images that were decoded."""
    decoded: list[int] = []
    for shard in reversed(range(shards)):
        if shard not in left_out:
            job = RecordingPrefix()
            job.compute(place, batch, view, ShardSpec(shards=shards, shard=shard))
            decoded += job.decoded
    FeatureCache.release()
    return sorted(decoded)


def test_shards_are_whole_batches_and_cover_all_rows() -> None:
    four = [ShardSpec(shards=4, shard=shard).of(NUM_IMAGES, 16) for shard in range(4)]
    assert [(shard.first, shard.end) for shard in four] == [(0, 32), (32, 80), (80, 112), (112, 150)]
    twelve = [ShardSpec(shards=12, shard=shard).of(NUM_IMAGES, 16) for shard in range(12)]
    assert sorted(len(shard) for shard in twelve) == [0, 0, 6, *[16] * 9]
    assert [row for shard in twelve for row in range(shard.first, shard.end)] == list(range(NUM_IMAGES))


@pytest.mark.parametrize("view", [None, EVEN_ROWS], ids=["as they are", "a view"])
@pytest.mark.parametrize("shards", [1, 4, 12])
def test_shards_give_the_bytes_of_unsharded_features_without_repeated_work(
    plain: None, tmp_path: Path, shards: int, view: AugmentedView | None, caplog: pytest.LogCaptureFixture
) -> None:
    whole = RecordingPrefix()
    expected = whole.compute(tmp_path / "whole", view=view).copy()
    assert whole.images(tmp_path / "whole").skipped_rows() == set(BAD)
    decoded = compute_shards(tmp_path / "shards", shards, view=view)
    assert len(decoded) == len(set(decoded))
    last = RecordingPrefix()
    with caplog.at_level(logging.INFO):
        assert last.compute(tmp_path / "shards", view=view).tobytes() == expected.tobytes()
    assert last.batches == []
    assert last.images(tmp_path / "shards").skipped_rows() == set(BAD)
    assert sorted([*decoded, *last.decoded]) == list(range(NUM_IMAGES))
    assert cache_files(tmp_path / "shards") == cache_files(tmp_path / "whole")
    rows = len(expected)
    if shards > 1:
        assert (
            f"features: {rows} of {rows} rows copied from {min(shards, -(-rows // 16))} cached shards"
            in caplog.messages
        )


def test_shard_decodes_only_its_images_and_notes_the_skipped_ones(plain: None, tmp_path: Path) -> None:
    job = RecordingPrefix()
    job.compute(tmp_path, shard_spec=ShardSpec(shards=4, shard=1))
    assert (sorted(job.decoded), job.batches) == (list(range(32, 80)), [16, 16, 16])
    (photos,) = tmp_path.glob("photos-*/entry.json")
    assert json.loads(photos.read_text())["notes"] == {"skipped": [40, 77]}
    assert json.loads(photos.read_text())["identity"]["shard"] == {
        "first": 32,
        "end": 80,
        "total": NUM_IMAGES,
        "step": 1,
    }
    again = RecordingPrefix()
    assert len(again.compute(tmp_path, shard_spec=ShardSpec(shards=4, shard=1))) == 48
    assert (again.decoded, again.batches) == ([], [])


def test_rows_that_no_shard_holds_are_computed(plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RecordingPrefix().compute(tmp_path / "whole")
    compute_shards(tmp_path / "shards", 4, left_out=(1, 3))
    last = RecordingPrefix()
    with caplog.at_level(logging.INFO):
        last.compute(tmp_path / "shards")
    assert (sorted(last.decoded), last.batches) == ([*range(32, 80), *range(112, 150)], [16, 16, 16, 16, 16, 6])
    assert "features: 64 of 150 rows copied from 2 cached shards" in caplog.messages
    assert cache_files(tmp_path / "shards") == cache_files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["a bit", "another step"])
def test_unusable_shard_is_logged_and_recomputed(
    plain: None, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    RecordingPrefix().compute(tmp_path / "whole")
    compute_shards(tmp_path / "shards", 4, left_out=(2,))
    before = set((tmp_path / "shards").glob("features-*[0-9a-f]"))
    RecordingPrefix().compute(
        tmp_path / "shards", 8 if damage == "another step" else 16, shard_spec=ShardSpec(shards=4, shard=2)
    )
    FeatureCache.release()
    (shard,) = set((tmp_path / "shards").glob("features-*[0-9a-f]")) - before
    if damage == "a bit":
        whole = (shard / "rows.npy").read_bytes()
        (shard / "rows.npy").write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    # As in another process.
    FeatureCache._verified.clear()
    last = RecordingPrefix()
    last.compute(tmp_path / "shards")
    warned = (
        f"{shard} is damaged: recomputing it"
        if damage == "a bit"
        else f"{shard.name} was computed in batches of 8 rows, not 16: shard skipped"
    )
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [warned]
    assert last.batches == [16, 16]
    assert last.images(tmp_path / "shards").skipped_rows() == set(BAD)
    # Its batch size may be that of another machine.
    assert shard.exists() == (damage == "another step")
    if shard.exists():
        shutil.rmtree(shard)
    assert cache_files(tmp_path / "shards") == cache_files(tmp_path / "whole")


def test_missing_rows_are_computed_in_the_batch_size_of_the_shards(
    plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RecordingPrefix().compute(tmp_path / "whole", 24)
    # On a machine with a larger batch size.
    for number in (0, 2):
        RecordingPrefix().compute(tmp_path / "shards", 24, shard_spec=ShardSpec(shards=3, shard=number))
    FeatureCache.release()
    last = RecordingPrefix()
    last.compute(tmp_path / "shards")
    assert last.batches == [24, 24]
    assert last.images(tmp_path / "shards").skipped_rows() == set(BAD)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert cache_files(tmp_path / "shards") == cache_files(tmp_path / "whole")


@pytest.mark.slow
def test_joining_shards_resumes_to_the_same_bytes_after_a_kill_at_any_moment(
    plain: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows are copied in steps of one batch of features, or eight images.
    monkeypatch.setattr(partial_array, "WINDOW_BYTES", 4 * 8 * 48)
    RecordingPrefix().compute(tmp_path / "whole")
    expected = cache_files(tmp_path / "whole")
    compute_shards(tmp_path / "shards", 5, left_out=(2,))
    seen = set()
    for moment in itertools.count(1, 2):
        place = tmp_path / f"killed-{moment}"
        shutil.copytree(tmp_path / "shards", place)
        if not is_killed_at(place, moment, WRITING):
            break
        seen.add(unfinished_rows(place).get("features", NUM_IMAGES))
        again = RecordingPrefix()
        again.compute(place)
        assert set(again.decoded) <= set(range(64, 96))
        assert sum(again.batches) <= 32
        assert again.images(place).skipped_rows() == set(BAD)
        assert cache_files(place) == expected
        FeatureCache.release()
    assert moment > 30
    assert seen == {*range(0, NUM_IMAGES, 16), NUM_IMAGES}


def test_overlapping_shards_of_two_sizes_are_joined(
    plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RecordingPrefix().compute(tmp_path / "whole")
    compute_shards(tmp_path / "shards", 4, left_out=(3,))
    # Shards from row 48 and from row 96 on.
    compute_shards(tmp_path / "shards", 3, left_out=(0,))
    last = RecordingPrefix()
    with caplog.at_level(logging.INFO):
        last.compute(tmp_path / "shards")
    assert last.images(tmp_path / "shards").skipped_rows() == set(BAD)
    assert (last.decoded, last.batches) == ([], [])
    # The shards that start at rows 0, 32, 48 (used from 80 on), 80 (from 96 on) and 96 (from 112 on).
    assert "features: 150 of 150 rows copied from 5 cached shards" in caplog.messages
    assert cache_files(tmp_path / "shards") == cache_files(tmp_path / "whole")


def test_shards_use_cached_images_and_skip_cached_features(plain: None, tmp_path: Path) -> None:
    RecordingPrefix().images(tmp_path).rows()
    assert compute_shards(tmp_path, 4) == []
    RecordingPrefix().compute(tmp_path)
    before = cache_files(tmp_path)
    assert compute_shards(tmp_path, 3) == []
    assert cache_files(tmp_path) == before


def test_joining_shards_detects_too_many_unreadable_images(plain: None, tmp_path: Path) -> None:
    # One image of 150.
    strict = replace(SKIPPING, max_corrupt_fraction=0.01)
    features = settings(tmp_path)
    # No shard has two unreadable images.
    for shard in range(4):
        job = RecordingPrefix(bad=(40, 100))
        compute_features(job, job.images(tmp_path, strict), features, shard_spec=ShardSpec(shards=4, shard=shard))  # type: ignore[arg-type]
    last = RecordingPrefix(bad=(40, 100))
    compute_features(last, last.images(tmp_path, strict), features)  # type: ignore[arg-type]
    with pytest.raises(
        UserError,
        match=r"^2 of 150 images of train cannot be read\. data\.max_corrupt_fraction allows 0\.01 of them\. Repair ",
    ):
        last.images(tmp_path, strict).skipped_rows()
    job = RecordingPrefix(bad=(40, 50))
    with pytest.raises(UserError, match=r"^2 of 150 images of train cannot be read\."):
        compute_features(job, job.images(tmp_path / "other", strict), features, shard_spec=ShardSpec(shards=4, shard=1))  # type: ignore[arg-type]
