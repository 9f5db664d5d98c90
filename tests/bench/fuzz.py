"""What becomes of 10,000 files that are no photos, or no longer: seeded damage to drawn dogs, and what only has a photo's name. `make fuzz` runs it.

Each file must end in pixels or in a sentence. A process of its own decodes them, so that a hang or a crash of the libraries below is counted and
named (`python tests/bench/fuzz.py 10000 0` makes the same files again), and an audit hook in it sees every file that it would open to write.

python tests/bench/fuzz.py 1000 7        # so many files, from this seed
"""

import functools
import io
import os
import stat
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest
from dogbreeds.data import drawn_dogs
from dogbreeds.data.files import decode_file, examine_below
from dogbreeds.data.image import MAX_BYTES, MAX_PIXELS, REASONS, Unreadable, decode

FILES, SEED = 10_000, 0
# Seconds that a file may take before it counts as a hang
PATIENCE = 30
# Every so many files goes through the disk
ON_DISK = 10
CHANGED = "changed"
# Of a file: what each is called, and what is in it
Pieces = list[tuple[bytes, bytes]]


# --- real photos ----------------------------------------------------------------------------------------------------------


def _tags() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "a camera", {0x9003: "2024:01:01 10:00:00", 0x829A: (1, 125)}
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 0.0)}
    return exif.tobytes()


def _text() -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a dog " * 50, zip=True)
    text.add_itxt("Title", "ein Hund", "de", "Titel")
    return text


# name: suffix, mode, options of Pillow's save
ENCODINGS: dict[str, tuple[str, str, dict]] = {
    "JPEG": (".jpg", "RGB", {"quality": 90}),
    "JPEG, grey": (".jpg", "L", {}),
    "JPEG, CMYK": (".jpg", "CMYK", {}),
    "JPEG, progressive": (".jpeg", "RGB", {"progressive": True, "subsampling": 0}),
    "JPEG, restarts": (".jpg", "RGB", {"restart_marker_blocks": 3, "comment": "a dog"}),
    "JPEG, EXIF": (".jpg", "RGB", {"exif": _tags, "icc_profile": b"\0" * 300}),
    "PNG": (".png", "RGB", {}),
    "PNG, palette": (".png", "P", {"transparency": 3}),
    "PNG, bits": (".png", "1", {}),
    "PNG, alpha": (".png", "RGBA", {}),
    "PNG, grey and alpha": (".png", "LA", {}),
    "PNG, 16 bits": (".png", "I;16", {}),
    "PNG, text": (".png", "RGB", {"pnginfo": _text, "exif": _tags, "icc_profile": b"\0" * 300}),
    "PNG, moving": (".png", "RGB", {"save_all": True, "append_images": 2}),
    "WebP": (".webp", "RGB", {"quality": 80}),
    "WebP, lossless": (".webp", "RGB", {"lossless": True}),
    "WebP, alpha": (".webp", "RGBA", {}),
    "WebP, EXIF": (".webp", "RGB", {"exif": _tags, "icc_profile": b"\0" * 300}),
    "WebP, moving": (".webp", "RGB", {"save_all": True, "append_images": 2}),
}


def _dog(breed: int, photo: int, mode: str) -> Image.Image:
    picture = Image.fromarray(drawn_dogs.draw("train", breed, photo)).resize((48 + 16 * (photo % 5), 64))
    return (
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else picture.convert(mode)
    )


def _encoded(name: str, breed: int, photo: int, **more: object) -> bytes:
    suffix, mode, options = ENCODINGS[name]
    made = {key: value() if callable(value) else value for key, value in options.items()} | more
    if "append_images" in made:
        made["append_images"] = [_dog(breed, photo + 5 * (1 + number), mode) for number in range(made["append_images"])]
    file = io.BytesIO()
    _dog(breed, photo, mode).save(file, {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG"), **made)
    return file.getvalue()


@functools.cache
def _photos(name: str) -> tuple[bytes, ...]:
    return tuple(_encoded(name, breed, breed) for breed in range(4))


# --- taking files apart ---------------------------------------------------------------------------------------------------

_PNG, _JPEG, _SOS = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xda"


def _apart(encoded: bytes) -> Pieces:
    if encoded.startswith(_PNG):
        return list(_chunks(encoded, 8, ">I4s", lambda length, tag: (length, tag, 12)))
    if encoded.startswith(_JPEG):
        return list(_segments(encoded))
    return list(_chunks(encoded, 12, "<4sI", lambda tag, length: (length, tag, 8 + length % 2)))


def _chunks(encoded: bytes, at: int, header: str, meaning: Callable) -> Iterator[tuple[bytes, bytes]]:
    while at + 8 <= len(encoded):
        length, tag, around = meaning(*struct.unpack_from(header, encoded, at))
        yield tag, encoded[at + 8 : at + 8 + length]
        at += length + around


def _segments(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 2
    while (tag := encoded[at : at + 2]) != _SOS:
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        yield tag, encoded[at + 4 : at + 2 + length]
        at += 2 + length
    # With its length, and all that follows
    yield _SOS, encoded[at + 2 :]


def _together(like: bytes, pieces: Pieces) -> bytes:
    """The pieces as a file of the same format, with right lengths and checksums."""
    if like.startswith(_PNG):
        return _PNG + b"".join(
            struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
            for tag, body in pieces
        )
    if like.startswith(_JPEG):
        return _JPEG + b"".join(
            tag + (b"" if tag == _SOS else struct.pack(">H", min(65535, len(body) + 2))) + body for tag, body in pieces
        )
    whole = b"WEBP" + b"".join(
        tag + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for tag, body in pieces
    )
    return b"RIFF" + struct.pack("<I", len(whole)) + whole


def _sized(encoded: bytes, width: int, height: int) -> bytes:
    """The same file, declaring another size."""
    return _together(encoded, [(tag, _resized(tag, body, width, height)) for tag, body in _apart(encoded)])


def _resized(tag: bytes, body: bytes, width: int, height: int) -> bytes:
    if tag == b"IHDR":
        return struct.pack(">II", width % 2**31, height % 2**31) + body[8:]
    if tag[:1] == b"\xff" and 0xC0 <= tag[1] <= 0xC2:
        return body[:1] + struct.pack(">HH", height % 65536, width % 65536) + body[5:]
    if tag == b"VP8X":
        return body[:4] + (width % 2**24).to_bytes(3, "little") + (height % 2**24).to_bytes(3, "little") + body[10:]
    if tag == b"VP8 ":
        return body[:6] + struct.pack("<HH", width % 16384, height % 16384) + body[10:]
    if tag == b"VP8L":
        return body[:1] + (width % 16384 | height % 16384 << 14).to_bytes(4, "little") + body[5:]
    return body


# --- damage ---------------------------------------------------------------------------------------------------------------


def _any(rng: np.random.Generator, names: Iterable[str] = ENCODINGS) -> bytes:
    listed = list(names)
    return _photos(listed[rng.integers(len(listed))])[rng.integers(4)]


def _flipped(rng: np.random.Generator, encoded: bytes) -> bytes:
    damaged = np.frombuffer(encoded, np.uint8).copy()
    where = rng.integers(len(damaged), size=rng.integers(1, 20))
    damaged[where] ^= (1 << rng.integers(8, size=len(where))).astype(np.uint8)
    return damaged.tobytes()


def _zeroed(rng: np.random.Generator, encoded: bytes) -> bytes:
    start = int(rng.integers(len(encoded)))
    length = min(int(rng.integers(1, 200)), len(encoded) - start)
    return encoded[:start] + bytes([rng.choice([0, 255])]) * length + encoded[start + length :]


def _cut(rng: np.random.Generator, encoded: bytes) -> bytes:
    return encoded[: rng.integers(len(encoded))]


def _spliced(rng: np.random.Generator, encoded: bytes) -> bytes:
    return _cut(rng, encoded) + (other := _any(rng))[rng.integers(len(other)) :]


def _declaring(rng: np.random.Generator, encoded: bytes) -> bytes:
    return _sized(encoded, *(int(rng.choice([0, 1, 17, 63, 65, 300, 4000, 16383])) for _ in range(2)))


def _shuffled(rng: np.random.Generator, encoded: bytes) -> bytes:
    pieces = _apart(encoded)
    if rng.random() < 0.5:
        pieces = [pieces[index] for index in rng.permutation(len(pieces))]
    at = int(rng.integers(len(pieces)))
    return _together(encoded, [pieces[:at] + pieces[at + 1 :], pieces[: at + 1] + pieces[at:], pieces][rng.integers(3)])


def _noisy(rng: np.random.Generator, encoded: bytes) -> bytes:
    """A file of which one piece, with right length and checksum, is damaged within."""
    pieces = _apart(encoded)
    at = int(rng.integers(len(pieces)))
    tag, body = pieces[at]
    damage: list[Callable[[np.random.Generator, bytes], bytes]] = [
        _flipped,
        _zeroed,
        _cut,
        lambda rng, body: rng.bytes(len(body)),
    ]
    pieces[at] = tag, damage[rng.integers(4)](rng, body or b"\0")
    return _together(encoded, pieces)


def _badly_tagged(rng: np.random.Generator, _: bytes) -> bytes:
    tags = [_flipped, _zeroed, _cut, _turned][rng.integers(4)](rng, _tags())
    return _encoded(["JPEG", "PNG", "WebP"][rng.integers(3)], 0, 0, exif=tags)


def _turned(rng: np.random.Generator, tags: bytes) -> bytes:
    """An orientation that is none: of another type, or counted or valued at random."""
    at = tags.index(b"\x01\x12\x00\x03")
    return tags[: at + 2] + bytes([0, rng.integers(14)]) + rng.bytes(8) + tags[at + 12 :]


def _bomb(rng: np.random.Generator, encoded: bytes) -> bytes:
    kind = rng.random()
    if kind < 0.6:
        return _sized(encoded, *(int(side) for side in np.exp(rng.uniform(np.log(3000), np.log(2**24), size=2))))
    if kind < 0.75:
        scans = _photos("JPEG, progressive")[rng.integers(4)]
        return scans[:-2] + scans[scans.rfind(_SOS) : -2] * int(rng.integers(1, 3000)) + scans[-2:]
    if kind < 0.99:
        return _swollen([b"zTXt", b"iTXt", b"iCCP"][rng.integers(3)])
    return _flat(10_000)


@functools.cache
def _swollen(tag: bytes) -> bytes:
    """A PNG with 80 MB in a chunk beside its pixels."""
    start = {b"zTXt": b"dog\0\0", b"iTXt": b"dog\0\1\0\0\0", b"iCCP": b"dog\0\0"}[tag]
    png = _photos("PNG")[0]
    header, *others = _apart(png)
    return _together(png, [header, (tag, start + zlib.compress(bytes(80_000_000))), *others])


@functools.cache
def _flat(side: int) -> bytes:
    """As many pixels as are allowed, in as few bytes as PNG needs."""
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return _together(
        _PNG, [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    )


def _as_it_is(_: np.random.Generator, encoded: bytes) -> bytes:
    return encoded


# What is done to a photo that one of the 19 encodings gave.
DAMAGE: dict[str, Callable[[np.random.Generator, bytes], bytes]] = {
    "as it is": _as_it_is,
    "wrong suffix": _as_it_is,
    "garbage behind": lambda rng, encoded: encoded + rng.bytes(int(rng.integers(1, 3000))),
    "random bytes": lambda rng, _: rng.bytes(int(rng.integers(3000))),
    "random bytes behind a beginning": (
        lambda rng, encoded: encoded[: rng.integers(2, 60)] + rng.bytes(int(rng.integers(3000)))
    ),
    "bits flipped": _flipped,
    "bytes overwritten": _zeroed,
    "cut off": _cut,
    "spliced": _spliced,
    "another width and height": _declaring,
    "chunks shuffled": _shuffled,
    "a chunk of noise": _noisy,
    "EXIF damaged": _badly_tagged,
    "bomb": _bomb,
}
# What is no file, or not what it was; these are on disk only.
PLACES = (
    "pipe, socket, folder",
    "link that leads nowhere",
    "link out of the root",
    "too many bytes",
    "changed since it was examined",
)
KINDS = (*DAMAGE, *PLACES)


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        number: of how many.
        kind: one of `KINDS`.
        content: what is in it.
        suffix: of its name.
        on_disk: whether it must be read from there.
    """

    number: int
    kind: str
    content: bytes
    suffix: str
    on_disk: bool


def case(seed: int, number: int) -> Case:
    """The same file for the same numbers."""
    rng = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    name = list(ENCODINGS)[rng.integers(len(ENCODINGS))]
    suffix = ENCODINGS[name][0]
    if kind == "wrong suffix":
        suffix = {".png": ".jpg", ".webp": ".png"}.get(suffix, ".webp")
    content = DAMAGE.get(kind, _as_it_is)(rng, _photos(name)[rng.integers(4)])
    return Case(
        number, kind, content, suffix, kind in PLACES or kind == "wrong suffix" or number // len(KINDS) % ON_DISK == 0
    )


# --- on disk --------------------------------------------------------------------------------------------------------------


def lay(root: Path, this: Case) -> None:
    """Puts a file where it can be read, alone in a folder of the root."""
    folder = root / str(this.number)
    folder.mkdir()
    path = folder / f"photo{this.suffix}"
    if this.kind == "pipe, socket, folder":
        (os.mkfifo, _listening, os.mkdir)[this.number // len(KINDS) % 3](path)
    elif this.kind == "link that leads nowhere":
        path.symlink_to(("gone.jpg", path.name)[this.number // len(KINDS) % 2])
    elif this.kind == "link out of the root":
        (root.parent / "outside.jpg").write_bytes(this.content)
        path.symlink_to(("../../outside.jpg", root.parent / "outside.jpg")[this.number // len(KINDS) % 2])
    else:
        path.write_bytes(this.content)
        if this.kind == "too many bytes":
            os.truncate(path, MAX_BYTES + 1 + this.number)


def _listening(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


# --- reading --------------------------------------------------------------------------------------------------------------


def outcome(root: Path, this: Case) -> str:
    """`read`, the reason why not, or what escaped."""
    try:
        pixels = _from_disk(root, this) if this.on_disk else decode(this.content, f"photo {this.number}")
    except Unreadable as error:
        said = str(error)
        fine = (
            error.reason in REASONS
            and said.isprintable()
            and said.endswith(" data.on_corrupt=skip.")
            and " object at 0x" not in said
        )
        return error.reason if fine else f"escaped: {said!r}"
    except UserError as error:
        return CHANGED if "changed while it was being read" in str(error) else f"escaped: {error}"
    except Exception as error:
        # what this is there to find
        return f"escaped: {type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"
    height, width, channels = pixels.shape
    fine = pixels.dtype == np.uint8 and channels == 3 and 0 < height * width <= MAX_PIXELS
    return "read" if fine else f"escaped: {pixels.shape} {pixels.dtype}"


Reading = Callable[[Path, Case], str]


def _from_disk(root: Path, this: Case) -> np.ndarray:
    with os.scandir(root / str(this.number)) as entries:
        files = list(entries)
    [found] = examine_below(root, files)
    if isinstance(found, Unreadable):
        raise found
    return decode_file(files[0].path, digest(b"before") if this.kind == "changed since it was examined" else found)


@dataclass
class Report:
    """What became of the files.

    Attributes:
        outcomes: of each kind, how many files had each outcome.
        crashes: what escaped, and what ended the process, each with its number.
        hangs: numbers of files that took longer than `PATIENCE`.
        writes: what was written or removed, or tried to be.
        slowest: milliseconds, and the number of the file.
        peak: MiB.
    """

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    crashes: list[str] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    peak: int = 0

    def add(self, number: int, said: str, milliseconds: float, peak: int, writes: list[str]) -> None:
        self.outcomes[KINDS[number % len(KINDS)]][said.split(":")[0]] += 1
        self.crashes += [f"file {number}: {said}"] if said.startswith("escaped") else []
        self.slowest = max(self.slowest, (milliseconds, number))
        self.peak = max(self.peak, peak)
        self.writes += [f"file {number}: {write}" for write in writes]

    @property
    def total(self) -> Counter[str]:
        return sum(self.outcomes.values(), Counter())

    @property
    def read(self) -> int:
        return self.total["read"]

    @property
    def refused(self) -> int:
        return sum(self.total[reason] for reason in (*REASONS, CHANGED))

    def __str__(self) -> str:
        names = ["read", *REASONS, CHANGED]
        lines = [f"| what was done to it | {' | '.join(names)} |", f"| --- {'| ---: ' * len(names)}|"]
        for kind, counts in [*self.outcomes.items(), ("all", self.total)]:
            lines.append(f"| {kind} | {' | '.join(f'{counts[name]:,}' if counts[name] else '' for name in names)} |")
        lines += ["", f"{self.read + self.refused:,} files: {self.read:,} read, {self.refused:,} refused"]
        lines += [f"crashes {len(self.crashes)}, hangs {len(self.hangs)}, writes {len(self.writes)}"]
        lines += [
            *self.crashes[:20],
            *(f"file {number}: more than {PATIENCE} s" for number in self.hangs),
            *self.writes[:20],
        ]
        return "\n".join(
            [*lines, f"slowest: file {self.slowest[1]}, {self.slowest[0]:,.0f} ms; peak memory {self.peak:,} MiB"]
        )


def here(count: int, seed: int, root: Path) -> Report:
    """What becomes of the files, in this very process; writes are not watched."""
    report = Report()
    for this in (case(seed, number) for number in range(count)):
        if this.on_disk:
            lay(root, this)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            started = time.perf_counter()
            said = outcome(root, this)
        report.add(this.number, said, 1000 * (time.perf_counter() - started), 0, [])
    return report


# --- in a process of its own ----------------------------------------------------------------------------------------------

_CHANGING = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr",
    "shutil.move", "shutil.rmtree", "shutil.copyfile", "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _read_all(connection: Connection, reading: Reading, seed: int, numbers: range, root: Path) -> None:
    writes: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event in _CHANGING or (event == "open" and arguments[2] & _WRITING):
            writes.append(f"{event} {arguments}")

    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    sys.addaudithook(watch)
    connection.send("ready")
    for number in numbers:
        this = case(seed, number)
        # Of making it
        writes.clear()
        started = time.perf_counter()
        said = reading(root, this)
        milliseconds = 1000 * (time.perf_counter() - started)
        connection.send((number, said, milliseconds, _peak(), [*writes]))


def _peak() -> int:
    """Return the most MiB that this process has taken.

    It is not ru_maxrss, which a process inherits: it begins with the peak of the one that started it.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))


def watched(count: int, seed: int, root: Path, reading: Reading = outcome, patience: float = PATIENCE) -> Report:
    """What becomes of the files, in a process that may crash or hang; the next file then gets another."""
    report = Report()
    for this in (case(seed, number) for number in range(count)):
        if this.on_disk:
            lay(root, this)
    left = range(count)
    while left:
        left = left[_watch(report, reading, seed, left, root, patience) :]
    return report


def _watch(report: Report, reading: Reading, seed: int, numbers: range, root: Path, patience: float) -> int:
    """Reads files until one ends or stops the process, or there are no more; returns how many are done with."""
    receiving, sending = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_read_all, args=(sending, reading, seed, numbers, root), daemon=True)
    process.start()
    sending.close()
    try:
        # The patience is with files, not with a process that starts
        receiving.recv()
        for done, number in enumerate(numbers, 1):
            if not receiving.poll(patience):
                report.hangs.append(number)
                return done
            try:
                report.add(*receiving.recv())
            except EOFError:
                process.join()
                report.crashes.append(f"file {number}: the process ended with {process.exitcode}")
                return done
        return len(numbers)
    finally:
        process.kill()
        process.join()


def main(count: int = FILES, seed: int = SEED) -> Report:
    """Print and return what became of so many files, from this seed."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        report = watched(count, seed, root)
    print(f"{report}\n{time.perf_counter() - started:.0f} s")
    return report


if __name__ == "__main__":
    done = main(*(int(argument) for argument in sys.argv[1:3]))
    sys.exit(bool(done.crashes or done.hangs or done.writes))
