import functools
import io
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core import console
from dogbreeds.core.errors import UserError
from dogbreeds.data.augment import Guide, Plain
from dogbreeds.data.dataset import Source
from dogbreeds.data.folder import Folder
from dogbreeds.data.image import Unreadable
from dogbreeds.data.miniature import Miniature
from dogbreeds.features import partial_array
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import Photos, View, compute
from dogbreeds.features.features import ALL, Features, Share
from dogbreeds.models.model import Miniature as MiniatureModel
from dogbreeds.models.network import Prefix, assemble
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import Blocks, Nothing

MODES = {"batchnorm": "frozen", "drop_connect": "off"}
DATA = Miniature(
    breeds=10,
    train_per_breed=3,
    val_per_breed=1,
    test_per_breed=1,
    resize="stretch",
    on_corrupt="stop",
    max_corrupt_fraction=0.01,
)


@pytest.fixture
def features(tmp_path: Path):
    yield Features(dir=str(tmp_path / "kept"), dtype="float32", max_gigabytes=1, batch_size=16)
    FeatureCache.release()


@functools.cache
def prefix(mode: str = "raw", policy=None) -> Prefix:
    """The same one each time, so that it is compiled once."""
    backbone = MiniatureModel(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    plan = (policy or Nothing(**MODES)).plan(backbone.blocks)
    return assemble(backbone, Preprocessing(mode=mode), plan, lambda features: None).prefix  # type: ignore[arg-type,return-value]


def plain_keras(pixels: np.ndarray, mode: str = "raw") -> np.ndarray:
    """The reference, of plain Keras layers: preprocessing, backbone and pooling in inference mode."""
    import keras

    network = MiniatureModel(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0).network
    shown = pixels.astype(np.float32)
    if mode != "raw":
        shown = keras.applications.imagenet_utils.preprocess_input(shown.copy(), mode=mode)
    return np.asarray(network(shown, training=False)).mean(axis=(1, 2))


@pytest.mark.parametrize("mode", [pytest.param("raw", marks=pytest.mark.slow), "torch"])
def test_kept_features_are_what_keras_computes(features: Features, mode: str) -> None:
    source = DATA.open().train.source
    kept = compute(prefix(mode), Photos(source, DATA, 64, features.store()), features)
    pixels = np.stack([photo() for photo in source.read()])
    assert kept.shape == (30, 640)
    assert np.allclose(kept, plain_keras(pixels, mode), atol=1e-4, rtol=1e-4)


def test_decoding_and_computing_happen_once(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    source, reads, computed = DATA.open().train.source, [], []
    counted = Source(
        source.name,
        source.labels,
        source.ids,
        source.digests,
        source.fingerprint,
        lambda: reads.append(1) or source.read(),
    )
    photos = Photos(counted, DATA, 64, features.store())
    built = prefix()
    run = built.compiled
    monkeypatch.setitem(built.__dict__, "compiled", lambda pixels: computed.append(len(pixels)) or run(pixels))
    first = compute(built, photos, features)
    again = compute(built, photos, features)
    assert np.array_equal(first, again)
    assert sum(computed) == 30
    compute(prefix("torch"), photos, features)
    compute(prefix(policy=Blocks(top=1, names=(), **MODES)), photos, features)
    # Other pixels and another cut need other features, but the same photos
    assert reads == [1]


def test_float16_halves_the_disk_and_stays_near(features: Features) -> None:
    half = Features(dir=features.dir, dtype="float16", max_gigabytes=1, batch_size=16)
    photos = Photos(DATA.open().train.source, DATA, 64, features.store())
    single, rounded = compute(prefix(), photos, features), compute(prefix(), photos, half)
    assert rounded.dtype == np.float16
    assert rounded.nbytes * 2 == single.nbytes
    assert np.allclose(single, rounded, rtol=1e-3, atol=1e-3)


def test_a_view_is_the_prefix_of_augmented_photos(features: Features) -> None:
    source = DATA.open().train.source
    augment = Guide(
        copies=2, rotation_degrees=20, horizontal_flip=True, shear_radians=0.15, shift_fraction=0.2, zoom_fraction=0.2,
        brightness_fraction=0.2, contrast_fraction=0.2,
    )  # fmt: skip
    rows = np.array([1, 4, 9, 20])
    photos = Photos(source, DATA, 64, features.store())
    kept = compute(prefix(), photos, features, View(augment, 1, 7, rows))
    pixels = np.stack([photo() for photo in source.read()])[rows]
    assert np.allclose(kept, plain_keras(augment.view(pixels, rows, 1, 7)), atol=1e-4, rtol=1e-4)
    other = compute(prefix(), photos, features, View(augment, 0, 7, rows))
    assert not np.allclose(kept, other, atol=1e-2)
    plain = compute(prefix(), photos, features, View(Plain(), 0, 7, rows))
    assert np.allclose(plain, compute(prefix(), photos, features)[rows], atol=1e-4)


@pytest.mark.parametrize("on_corrupt", ["stop", "skip"])
def test_a_photo_that_is_cut_off(photos: Callable[..., Path], features: Features, on_corrupt: str) -> None:
    root = photos(train=20)
    path = root / "train/breed_1/3.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    data = Folder(
        root=str(root),
        val_fraction=0.2,
        split_seed=0,
        resize="stretch",
        on_corrupt=on_corrupt,
        max_corrupt_fraction=0.05,
    )
    source = data.open().train.source
    shown = Photos(source, data, 64, features.store())
    if on_corrupt == "stop":
        with pytest.raises(Unreadable, match=r"train/breed_1/3\.jpg cannot be read as a photo"):
            compute(prefix(), shown, features)
        assert features.store().entries() == []
        return
    compute(prefix(), shown, features)
    bad = source.ids.index("train/breed_1/3.jpg")
    assert shown.skipped() == {bad}
    split = data.open().train
    assert len(split.without(shown.skipped()).rows) == len(split.rows) - (bad in split.rows)
    strict = Folder(
        root=str(root), val_fraction=0.2, split_seed=0, resize="pad", on_corrupt="skip", max_corrupt_fraction=0.01
    )
    with pytest.raises(
        UserError, match=r"1 of 60 photos of train cannot be read\. data\.max_corrupt_fraction allows 0\.01 of them\."
    ):
        compute(prefix(), Photos(source, strict, 64, features.store()), features)


# --- what was cut off, on photos and a prefix of plain NumPy, so that a process can be killed and begun again in milliseconds ----------------

PHOTOS = 150
BAD = (40, 77, 141)
SKIPPING = Miniature(
    breeds=10,
    train_per_breed=15,
    val_per_breed=1,
    test_per_breed=1,
    resize="stretch",
    on_corrupt="skip",
    max_corrupt_fraction=0.1,
)


class Counted:
    """A source and a prefix that write down what they are asked for; each output depends on all photos of its batch, to the last bit."""

    def __init__(self, at: Callable[[str, int], None] = lambda kind, row: None, bad: tuple[int, ...] = BAD) -> None:
        self.decoded: list[int] = []
        self.batches: list[int] = []
        self.at, self.bad = at, bad
        self.shape, self.fingerprint = (12,), "plain"
        ids = tuple(str(row) for row in range(PHOTOS))
        self.source = Source("train", np.zeros(PHOTOS, np.int32), ids, ids, "drawn", self._read)

    def _read(self) -> Iterator[Callable[[], np.ndarray]]:
        return (functools.partial(self._decode, row) for row in range(PHOTOS))

    def _decode(self, row: int) -> np.ndarray:
        self.at("photo", row)
        self.decoded.append(row)
        if row in self.bad:
            raise Unreadable(f"{row} cannot be read as a photo. Photos must be whole. Replace it.")
        return np.random.default_rng(row).integers(0, 256, (4, 4, 3), dtype=np.uint8)

    def compiled(self, pixels: np.ndarray) -> np.ndarray:
        self.at("batch", len(self.batches))
        self.batches.append(len(pixels))
        flat = pixels.reshape(len(pixels), -1).astype(np.float32)
        return flat[:, :12] * flat.mean()

    def batch_size(self) -> int:
        return 16

    def compute(
        self, place: Path, batch: int | None = None, view: View | None = None, share: Share = ALL
    ) -> np.ndarray:
        features = Features(dir=str(place), dtype="float32", max_gigabytes=1, batch_size=batch)
        return compute(self, self.photos(place), features, view, share)  # type: ignore[arg-type]

    def photos(self, place: Path, data: Miniature = SKIPPING) -> Photos:
        return Photos(self.source, data, 4, FeatureCache(place, 10**9))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Photos are taken as they are, and each step of a computation is written down, not only each second."""
    monkeypatch.setattr("dogbreeds.data.resize.resizer", lambda size, how: lambda photo: photo)
    monkeypatch.setattr(partial_array, "_PROGRESS_SECONDS", 0.0)
    yield
    FeatureCache.release()


def contents(place: Path) -> dict[str, bytes]:
    """All files of all entries."""
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in sorted(place.glob("*/*"))}


def left(place: Path) -> dict[str, int]:
    """How far each unfinished array is, by its kind."""
    listed = FeatureCache(place, 1).entries()
    return {entry.name.split("-")[0]: entry.unfinished[0] for entry in listed if entry.unfinished is not None}


def done(place: Path, kind: str) -> int:
    """Rows of an array that are done."""
    return PHOTOS if list(place.glob(f"{kind}-*[0-9a-f]")) else left(place).get(kind, 0)


# Moments other than the decoding of a photo
WRITING = ("batch", "note", "rename", "renamed")


def _killed_at(place: Path, moment: int, kinds: tuple[str, ...]) -> None:
    """Computes, and ends with SIGKILL at the so-manieth moment of these kinds."""
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
    Counted(at).compute(place)
    os._exit(7)


def killed(place: Path, moment: int, kinds: tuple[str, ...]) -> bool:
    """Whether it came to that moment."""
    worker = multiprocessing.get_context("fork").Process(target=_killed_at, args=(place, moment, kinds))
    worker.start()
    worker.join(60)
    assert worker.exitcode in (7, -signal.SIGKILL)
    return worker.exitcode != 7


def test_killed_at_any_moment_photos_and_features_end_with_the_same_bytes(plain: None, tmp_path: Path) -> None:
    Counted().compute(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    assert {(name.split("-")[0], Path(name).name) for name in expected} == {
        (kind, name) for kind in ("photos", "features") for name in ("entry.json", "rows.npy")
    }
    saved = {kind: set() for kind in ("photos", "features")}
    for kinds, moment in itertools.chain(
        ((("photo",), at) for at in range(1, PHOTOS, 37)), ((WRITING, at) for at in itertools.count(1, 3))
    ):
        place = tmp_path / f"{kinds[0]}-{moment}"
        if not killed(place, moment, kinds):
            break
        before, again = {kind: done(place, kind) for kind in saved}, Counted()
        again.compute(place)
        assert again.photos(place).skipped() == set(BAD)
        assert contents(place) == expected
        assert (len(again.decoded), sum(again.batches)) == (PHOTOS - before["photos"], PHOTOS - before["features"])
        for kind in saved:
            saved[kind].add(before[kind])
        FeatureCache.release()
    assert moment > 60
    assert saved == {"photos": {0, 32, 64, 96, 128, 150}, "features": {*range(0, 150, 16), 150}}


def test_killed_again_and_again_it_comes_to_an_end(plain: None, tmp_path: Path) -> None:
    Counted().compute(tmp_path / "whole")
    place, before, kills = tmp_path / "killed", -1, 0
    while killed(place, 25, WRITING):
        assert done(place, "features") > before
        before, kills = done(place, "features"), kills + 1
    assert kills > 2
    assert contents(place) == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["photo", "batch"])
def test_an_interruption_within_one_array_keeps_both(
    plain: None, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    # Nothing is written down but at the end
    monkeypatch.setattr(partial_array, "_PROGRESS_SECONDS", 3600.0)

    def at(what: str, row: int) -> None:
        if what == kind and row == {"photo": 100, "batch": 5}[kind]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interruption:
        Counted(at).compute(tmp_path / "cut")
    # What is said of where it was holds on to all that was going on
    assert interruption.tb is not None
    assert left(tmp_path / "cut") == (
        {"photos": 96, "features": 96} if kind == "photo" else {"photos": 96, "features": 80}
    )
    again = Counted()
    monkeypatch.setattr(console, "_QUIET_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        again.compute(tmp_path / "cut")
    assert sorted(again.decoded) == list(range(96, PHOTOS))
    assert again.batches == ([16] * 3 + [6] if kind == "photo" else [16] * 4 + [6])
    assert f"photos of train: going on from 96 of {PHOTOS}" in caplog.messages
    assert f"features of train: going on from {96 if kind == 'photo' else 80} of {PHOTOS}" in caplog.messages
    first, *_ = [message for message in caplog.messages if " images/s, " in message]
    assert first.startswith(f"features of train: {112 if kind == 'photo' else 96} of {PHOTOS}, ")
    Counted().compute(tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def interrupted(place: Path, batch: int | None = None) -> None:
    """Leaves five batches of features."""

    def at(what: str, row: int) -> None:
        if what == "batch" and row == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Counted(at).compute(place, batch)


def test_batches_are_not_mixed(plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(tmp_path / "cut", 8)
    again = Counted()
    again.compute(tmp_path / "cut", 20)
    assert again.batches == [20] * 7 + [10]
    # Photos do not depend on batches
    assert min(again.decoded) == 64
    assert [message.split(" was ")[1] for message in caplog.messages if " was " in message] == [
        "computed 8 at a time, not 20: it is computed anew"
    ]
    Counted().compute(tmp_path / "whole", 20)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_photos_that_went_away_are_decoded_again_where_features_go_on(plain: None, tmp_path: Path) -> None:
    interrupted(tmp_path / "cut")
    (part,) = (tmp_path / "cut").glob("photos-*.part")
    (part / "rows.npy").write_bytes(b"")
    again = Counted()
    again.compute(tmp_path / "cut")
    assert sorted(again.decoded) == list(range(PHOTOS))
    assert sum(again.batches) == PHOTOS - 80
    Counted().compute(tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_view_that_was_cut_off_is_gone_on_with(plain: None, tmp_path: Path) -> None:
    view = View(Plain(), 0, 7, np.arange(0, PHOTOS, 2))

    def at(what: str, row: int) -> None:
        if what == "batch" and row == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Counted(at).compute(tmp_path / "cut", view=view)
    again = Counted()
    again.compute(tmp_path / "cut", view=view)
    assert (again.decoded, again.batches) == ([], [16, 16, 11])
    Counted().compute(tmp_path / "whole", view=view)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_an_unreadable_photo_leaves_nothing_of_either(plain: None, tmp_path: Path) -> None:
    broken = Counted(bad=(100,))
    features = Features(dir=str(tmp_path), dtype="float32", max_gigabytes=1, batch_size=16)
    strict = Miniature(
        breeds=10,
        train_per_breed=15,
        val_per_breed=1,
        test_per_breed=1,
        resize="stretch",
        on_corrupt="stop",
        max_corrupt_fraction=0.1,
    )
    with pytest.raises(Unreadable, match=r"^100 cannot be read as a photo"):
        compute(broken, broken.photos(tmp_path, strict), features)  # type: ignore[arg-type]
    assert sum(broken.batches) > 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_row_that_cannot_be_read_is_black_whatever_was_left_there(plain: None, tmp_path: Path) -> None:
    interrupted(tmp_path)
    (part,) = tmp_path.glob("photos-*.part")
    rows = np.lib.format.open_memmap(part / "rows.npy", mode="r+")
    # Beyond what is done
    rows[BAD[-1]] = 9
    rows.flush()
    Counted().compute(tmp_path)
    assert not Counted().photos(tmp_path).rows()[BAD[-1]].any()


def test_what_was_done_before_is_of_the_total_and_not_of_the_rate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 20)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO), console.progress("features", 1_000, "images", before=600) as advance:
        advance(100)
        advance(300)
    assert caplog.messages == ["features: 700 of 1,000, 5 images/s, 60 s left", "features: 400 in 60.0 s, 7 images/s"]


def test_a_bar_begins_with_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(console.sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    with console.progress("features", 1_000, "images", before=600) as advance:
        advance(400)
    assert "600/1000" in screen.getvalue()
    assert "1000/1000" in screen.getvalue()
    assert "400/1000" not in screen.getvalue()


# --- in shards -------------------------------------------------------------------------------------------------------------------------------

EVEN = View(Plain(), 0, 7, np.arange(0, PHOTOS, 2))


def sharded(
    place: Path, shards: int, left_out: tuple[int, ...] = (), view: View | None = None, batch: int | None = None
) -> list[int]:
    """Computes the shards, the last first. Returns the photos that were decoded."""
    decoded: list[int] = []
    for shard in reversed(range(shards)):
        if shard not in left_out:
            job = Counted()
            job.compute(place, batch, view, Share(shards=shards, shard=shard))
            decoded += job.decoded
    FeatureCache.release()
    return sorted(decoded)


def test_shares_are_whole_batches_and_together_all() -> None:
    four = [Share(shards=4, shard=shard).of(PHOTOS, 16) for shard in range(4)]
    assert [(shard.first, shard.end) for shard in four] == [(0, 32), (32, 80), (80, 112), (112, 150)]
    twelve = [Share(shards=12, shard=shard).of(PHOTOS, 16) for shard in range(12)]
    assert sorted(len(shard) for shard in twelve) == [0, 0, 6, *[16] * 9]
    assert [row for shard in twelve for row in range(shard.first, shard.end)] == list(range(PHOTOS))


@pytest.mark.parametrize("view", [None, EVEN], ids=["as they are", "a view"])
@pytest.mark.parametrize("shards", [1, 4, 12])
def test_shards_give_the_same_bytes_and_no_work_is_done_twice(
    plain: None, tmp_path: Path, shards: int, view: View | None, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Counted()
    expected = whole.compute(tmp_path / "whole", view=view).copy()
    assert whole.photos(tmp_path / "whole").skipped() == set(BAD)
    decoded = sharded(tmp_path / "shards", shards, view=view)
    assert len(decoded) == len(set(decoded))
    last = Counted()
    with caplog.at_level(logging.INFO):
        assert last.compute(tmp_path / "shards", view=view).tobytes() == expected.tobytes()
    assert last.batches == []
    assert last.photos(tmp_path / "shards").skipped() == set(BAD)
    assert sorted([*decoded, *last.decoded]) == list(range(PHOTOS))
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")
    rows = len(expected)
    if shards > 1:
        assert f"features: {rows} of {rows} rows are taken from {min(shards, -(-rows // 16))} shards" in caplog.messages


def test_a_shard_decodes_its_own_photos_and_says_where_it_skipped_some(plain: None, tmp_path: Path) -> None:
    job = Counted()
    job.compute(tmp_path, share=Share(shards=4, shard=1))
    assert (sorted(job.decoded), job.batches) == (list(range(32, 80)), [16, 16, 16])
    (photos,) = tmp_path.glob("photos-*/entry.json")
    assert json.loads(photos.read_text())["notes"] == {"skipped": [40, 77]}
    assert json.loads(photos.read_text())["identity"]["shard"] == {"first": 32, "end": 80, "total": PHOTOS, "step": 1}
    again = Counted()
    assert len(again.compute(tmp_path, share=Share(shards=4, shard=1))) == 48
    assert (again.decoded, again.batches) == ([], [])


def test_what_no_shard_has_is_computed(plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Counted().compute(tmp_path / "whole")
    sharded(tmp_path / "shards", 4, left_out=(1, 3))
    last = Counted()
    with caplog.at_level(logging.INFO):
        last.compute(tmp_path / "shards")
    assert (sorted(last.decoded), last.batches) == ([*range(32, 80), *range(112, 150)], [16, 16, 16, 16, 16, 6])
    assert "features: 64 of 150 rows are taken from 2 shards" in caplog.messages
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["a bit", "another step"])
def test_a_shard_that_cannot_be_used_is_said_and_computed(
    plain: None, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    Counted().compute(tmp_path / "whole")
    sharded(tmp_path / "shards", 4, left_out=(2,))
    before = set((tmp_path / "shards").glob("features-*[0-9a-f]"))
    Counted().compute(tmp_path / "shards", 8 if damage == "another step" else 16, share=Share(shards=4, shard=2))
    FeatureCache.release()
    (shard,) = set((tmp_path / "shards").glob("features-*[0-9a-f]")) - before
    if damage == "a bit":
        whole = (shard / "rows.npy").read_bytes()
        (shard / "rows.npy").write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    # As in another process
    FeatureCache._verified.clear()
    last = Counted()
    last.compute(tmp_path / "shards")
    warned = (
        f"{shard} was damaged and is computed anew"
        if damage == "a bit"
        else f"{shard.name} was computed 8 at a time, not 16: it is not used"
    )
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [warned]
    assert last.batches == [16, 16]
    assert last.photos(tmp_path / "shards").skipped() == set(BAD)
    # It may be of use elsewhere
    assert shard.exists() == (damage == "another step")
    if shard.exists():
        shutil.rmtree(shard)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_what_is_missing_is_computed_in_the_steps_of_the_shards_that_are_there(
    plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Counted().compute(tmp_path / "whole", 24)
    # On a machine that takes more photos at a time
    for number in (0, 2):
        Counted().compute(tmp_path / "shards", 24, share=Share(shards=3, shard=number))
    FeatureCache.release()
    last = Counted()
    last.compute(tmp_path / "shards")
    assert last.batches == [24, 24]
    assert last.photos(tmp_path / "shards").skipped() == set(BAD)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_killed_while_it_joins_shards_it_ends_with_the_same_bytes(
    plain: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Copied a batch, or eight photos, at a time
    monkeypatch.setattr(partial_array, "WINDOW_BYTES", 4 * 8 * 48)
    Counted().compute(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    sharded(tmp_path / "shards", 5, left_out=(2,))
    seen = set()
    for moment in itertools.count(1, 2):
        place = tmp_path / f"killed-{moment}"
        shutil.copytree(tmp_path / "shards", place)
        if not killed(place, moment, WRITING):
            break
        seen.add(left(place).get("features", PHOTOS))
        again = Counted()
        again.compute(place)
        assert set(again.decoded) <= set(range(64, 96))
        assert sum(again.batches) <= 32
        assert again.photos(place).skipped() == set(BAD)
        assert contents(place) == expected
        FeatureCache.release()
    assert moment > 30
    assert seen == {*range(0, PHOTOS, 16), PHOTOS}


def test_shards_of_two_sizes_may_lie_side_by_side(
    plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Counted().compute(tmp_path / "whole")
    sharded(tmp_path / "shards", 4, left_out=(3,))
    # From row 48 and from row 96 on
    sharded(tmp_path / "shards", 3, left_out=(0,))
    last = Counted()
    with caplog.at_level(logging.INFO):
        last.compute(tmp_path / "shards")
    assert last.photos(tmp_path / "shards").skipped() == set(BAD)
    assert (last.decoded, last.batches) == ([], [])
    # 0, 32, of 48 from 80 on, of 80 from 96, of 96 from 112
    assert "features: 150 of 150 rows are taken from 5 shards" in caplog.messages
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_whole_photos_serve_the_shards_and_whole_features_leave_nothing_to_do(plain: None, tmp_path: Path) -> None:
    Counted().photos(tmp_path).rows()
    assert sharded(tmp_path, 4) == []
    Counted().compute(tmp_path)
    before = contents(tmp_path)
    assert sharded(tmp_path, 3) == []
    assert contents(tmp_path) == before


def test_too_many_unreadable_photos_are_noticed_where_shards_are_joined(plain: None, tmp_path: Path) -> None:
    # One of 150
    strict = replace(SKIPPING, max_corrupt_fraction=0.01)
    features = Features(dir=str(tmp_path), dtype="float32", max_gigabytes=1, batch_size=16)
    # No shard has two of them
    for shard in range(4):
        job = Counted(bad=(40, 100))
        compute(job, job.photos(tmp_path, strict), features, share=Share(shards=4, shard=shard))  # type: ignore[arg-type]
    last = Counted(bad=(40, 100))
    compute(last, last.photos(tmp_path, strict), features)  # type: ignore[arg-type]
    with pytest.raises(
        UserError,
        match=r"^2 of 150 photos of train cannot be read\. data\.max_corrupt_fraction allows 0\.01 of them\. Mend ",
    ):
        last.photos(tmp_path, strict).skipped()
    job = Counted(bad=(40, 50))
    with pytest.raises(UserError, match=r"^2 of 150 photos of train cannot be read\."):
        compute(job, job.photos(tmp_path / "other", strict), features, share=Share(shards=4, shard=1))  # type: ignore[arg-type]
