"""Fuzz test of the image decoder on 10,000 damaged or malicious files, made from drawn dogs. `make fuzz` runs it.

Each file must end in pixels or in an error message. A subprocess decodes them, so that a hang or a crash of the image
libraries is counted and named. An audit hook in it records every file that it would open for writing. The same number
of files and the same seed make the same files again.

python tests/bench/fuzz.py 1000 7        # number of files, seed
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest
from dogbreeds.data import drawn_dogs
from dogbreeds.data.decoder import PILLOW, PILLOW_SCALED, decoder_to_size
from dogbreeds.data.files import examine_below, examined_image
from dogbreeds.data.image import MAX_BYTES, MAX_PIXELS, REASONS, EncodedImage, UnreadableImageError

FILES, SEED = 10_000, 0
# Seconds after which a file counts as a hang.
TIMEOUT_SECONDS = 30
# One of this many files of each kind is read from disk.
DISK_INTERVAL = 10
CHANGED = "changed"
# Tag and body of each chunk or segment of a file.
Pieces = list[tuple[bytes, bytes]]


# --- undamaged images ------------------------------------------------------


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    exif[0x8769] = {0x9003: "2024:01:01 10:00:00", 0x829A: (1, 125)}
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 0.0)}
    return exif.tobytes()


def _text() -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a dog " * 50, zip=True)
    text.add_itxt("Title", "ein Hund", "de", "Titel")
    return text


# Suffix, mode, and options of Pillow's `save`, by name. Options that are functions are called.
ENCODINGS: dict[str, tuple[str, str, dict]] = {
    "JPEG": (".jpg", "RGB", {"quality": 90}),
    "JPEG, grey": (".jpg", "L", {}),
    "JPEG, CMYK": (".jpg", "CMYK", {}),
    "JPEG, progressive": (".jpeg", "RGB", {"progressive": True, "subsampling": 0}),
    "JPEG, restarts": (".jpg", "RGB", {"restart_marker_blocks": 3, "comment": "a dog"}),
    "JPEG, EXIF": (".jpg", "RGB", {"exif": _exif, "icc_profile": b"\0" * 300}),
    "PNG": (".png", "RGB", {}),
    "PNG, palette": (".png", "P", {"transparency": 3}),
    "PNG, bits": (".png", "1", {}),
    "PNG, alpha": (".png", "RGBA", {}),
    "PNG, grey and alpha": (".png", "LA", {}),
    "PNG, 16 bits": (".png", "I;16", {}),
    "PNG, text": (".png", "RGB", {"pnginfo": _text, "exif": _exif, "icc_profile": b"\0" * 300}),
    "PNG, moving": (".png", "RGB", {"save_all": True, "append_images": 2}),
    "WebP": (".webp", "RGB", {"quality": 80}),
    "WebP, lossless": (".webp", "RGB", {"lossless": True}),
    "WebP, alpha": (".webp", "RGBA", {}),
    "WebP, EXIF": (".webp", "RGB", {"exif": _exif, "icc_profile": b"\0" * 300}),
    "WebP, moving": (".webp", "RGB", {"save_all": True, "append_images": 2}),
}


def _dog(breed: int, number: int, mode: str) -> Image.Image:
    image = Image.fromarray(drawn_dogs.draw("train", breed, number)).resize((48 + 16 * (number % 5), 64))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def _encode(name: str, breed: int, number: int, **more: object) -> bytes:
    suffix, mode, options = ENCODINGS[name]
    chosen = {key: value() if callable(value) else value for key, value in options.items()} | more
    if "append_images" in chosen:
        frames = range(1, 1 + chosen["append_images"])
        chosen["append_images"] = [_dog(breed, number + 5 * frame, mode) for frame in frames]
    file = io.BytesIO()
    _dog(breed, number, mode).save(file, {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG"), **chosen)
    return file.getvalue()


@functools.cache
def _images(name: str) -> tuple[bytes, ...]:
    """Four undamaged images in one of the encodings."""
    return tuple(_encode(name, breed, breed) for breed in range(4))


# --- parsing files -----------------------------------------------

_PNG, _JPEG, _SOS = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xda"


def _split(encoded: bytes) -> Pieces:
    """Split a file into its chunks or segments."""
    if encoded.startswith(_PNG):
        return list(_chunks(encoded, 8, ">I4s", lambda length, tag: (length, tag, 12)))
    if encoded.startswith(_JPEG):
        return list(_segments(encoded))
    return list(_chunks(encoded, 12, "<4sI", lambda tag, length: (length, tag, 8 + length % 2)))


def _chunks(encoded: bytes, at: int, header: str, parse: Callable) -> Iterator[tuple[bytes, bytes]]:
    while at + 8 <= len(encoded):
        length, tag, overhead = parse(*struct.unpack_from(header, encoded, at))
        yield tag, encoded[at + 8 : at + 8 + length]
        at += length + overhead


def _segments(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 2
    while (tag := encoded[at : at + 2]) != _SOS:
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        yield tag, encoded[at + 4 : at + 2 + length]
        at += 2 + length
    # The last piece has its own length field and the rest of the file.
    yield _SOS, encoded[at + 2 :]


def _join(like: bytes, pieces: Pieces) -> bytes:
    """Join the pieces to a file of the same format, with correct lengths and checksums."""
    if like.startswith(_PNG):
        return _PNG + b"".join(
            struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
            for tag, body in pieces
        )
    if like.startswith(_JPEG):
        return _JPEG + b"".join(
            tag + (b"" if tag == _SOS else struct.pack(">H", min(65535, len(body) + 2))) + body for tag, body in pieces
        )
    content = b"WEBP" + b"".join(
        tag + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for tag, body in pieces
    )
    return b"RIFF" + struct.pack("<I", len(content)) + content


def declare_size(encoded: bytes, width: int, height: int) -> bytes:
    """Return the same file with another width and height in its header."""
    return _join(encoded, [(tag, _replace_size(tag, body, width, height)) for tag, body in _split(encoded)])


def _replace_size(tag: bytes, body: bytes, width: int, height: int) -> bytes:
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


# --- damage -----------------------------------------------------------


def _random_image(rng: np.random.Generator) -> bytes:
    names = list(ENCODINGS)
    return _images(names[rng.integers(len(names))])[rng.integers(4)]


def _flip_bits(rng: np.random.Generator, encoded: bytes) -> bytes:
    damaged = np.frombuffer(encoded, np.uint8).copy()
    where = rng.integers(len(damaged), size=rng.integers(1, 20))
    damaged[where] ^= (1 << rng.integers(8, size=len(where))).astype(np.uint8)
    return damaged.tobytes()


def _overwrite(rng: np.random.Generator, encoded: bytes) -> bytes:
    start = int(rng.integers(len(encoded)))
    length = min(int(rng.integers(1, 200)), len(encoded) - start)
    return encoded[:start] + bytes([rng.choice([0, 255])]) * length + encoded[start + length :]


def _truncate(rng: np.random.Generator, encoded: bytes) -> bytes:
    return encoded[: rng.integers(len(encoded))]


def _splice(rng: np.random.Generator, encoded: bytes) -> bytes:
    return _truncate(rng, encoded) + (other := _random_image(rng))[rng.integers(len(other)) :]


def _declare_random_size(rng: np.random.Generator, encoded: bytes) -> bytes:
    return declare_size(encoded, *(int(rng.choice([0, 1, 17, 63, 65, 300, 4000, 16383])) for _ in range(2)))


def _shuffle_chunks(rng: np.random.Generator, encoded: bytes) -> bytes:
    pieces = _split(encoded)
    if rng.random() < 0.5:
        pieces = [pieces[index] for index in rng.permutation(len(pieces))]
    at = int(rng.integers(len(pieces)))
    return _join(encoded, [pieces[:at] + pieces[at + 1 :], pieces[: at + 1] + pieces[at:], pieces][rng.integers(3)])


def _damage_chunk(rng: np.random.Generator, encoded: bytes) -> bytes:
    """Damage the body of one chunk, with correct length and checksum."""
    pieces = _split(encoded)
    at = int(rng.integers(len(pieces)))
    tag, body = pieces[at]
    damage: list[Callable[[np.random.Generator, bytes], bytes]] = [
        _flip_bits,
        _overwrite,
        _truncate,
        lambda rng, body: rng.bytes(len(body)),
    ]
    pieces[at] = tag, damage[rng.integers(4)](rng, body or b"\0")
    return _join(encoded, pieces)


def _damage_exif(rng: np.random.Generator, _: bytes) -> bytes:
    exif = [_flip_bits, _overwrite, _truncate, _damage_orientation][rng.integers(4)](rng, _exif())
    return _encode(["JPEG", "PNG", "WebP"][rng.integers(3)], 0, 0, exif=exif)


def _damage_orientation(rng: np.random.Generator, exif: bytes) -> bytes:
    """Give the orientation tag a random type, count and value."""
    at = exif.index(b"\x01\x12\x00\x03")
    return exif[: at + 2] + bytes([0, rng.integers(14)]) + rng.bytes(8) + exif[at + 12 :]


def _bomb(rng: np.random.Generator, encoded: bytes) -> bytes:
    kind = rng.random()
    if kind < 0.6:
        return declare_size(encoded, *(int(side) for side in np.exp(rng.uniform(np.log(3000), np.log(2**24), size=2))))
    if kind < 0.75:
        jpeg = _images("JPEG, progressive")[rng.integers(4)]
        return jpeg[:-2] + jpeg[jpeg.rfind(_SOS) : -2] * int(rng.integers(1, 3000)) + jpeg[-2:]
    if kind < 0.99:
        return huge_chunk([b"zTXt", b"iTXt", b"iCCP"][rng.integers(3)])
    return _largest_png(10_000)


@functools.cache
def huge_chunk(tag: bytes) -> bytes:
    """Return a PNG with a metadata chunk that decompresses to 80 MB."""
    start = {b"zTXt": b"dog\0\0", b"iTXt": b"dog\0\1\0\0\0", b"iCCP": b"dog\0\0"}[tag]
    png = _images("PNG")[0]
    header, *others = _split(png)
    return _join(png, [header, (tag, start + zlib.compress(bytes(80_000_000))), *others])


@functools.cache
def _largest_png(side: int) -> bytes:
    """Return a PNG of side x side pixels in as few bytes as possible."""
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return _join(_PNG, [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")])


def _undamaged(_: np.random.Generator, encoded: bytes) -> bytes:
    return encoded


# Damage to an image in one of the 19 encodings, by kind.
DAMAGE: dict[str, Callable[[np.random.Generator, bytes], bytes]] = {
    "undamaged": _undamaged,
    "wrong suffix": _undamaged,
    "trailing garbage": lambda rng, encoded: encoded + rng.bytes(int(rng.integers(1, 3000))),
    "random bytes": lambda rng, _: rng.bytes(int(rng.integers(3000))),
    "random bytes after a header": (
        lambda rng, encoded: encoded[: rng.integers(2, 60)] + rng.bytes(int(rng.integers(3000)))
    ),
    "bits flipped": _flip_bits,
    "bytes overwritten": _overwrite,
    "truncated": _truncate,
    "spliced": _splice,
    "wrong width and height": _declare_random_size,
    "chunks shuffled": _shuffle_chunks,
    "chunk damaged": _damage_chunk,
    "EXIF damaged": _damage_exif,
    "decompression bomb": _bomb,
}
# Kinds that exist on disk only: no regular files, or files that changed.
DISK_KINDS = (
    "pipe, socket, folder",
    "broken link",
    "link outside the root",
    "too many bytes",
    "changed after examination",
)
KINDS = (*DAMAGE, *DISK_KINDS)


@dataclass(frozen=True)
class Case:
    """A file for the decoder.

    Attributes:
        number: number of the file, from 0.
        kind: one of `KINDS`.
        content: its bytes.
        suffix: suffix of its name.
        on_disk: whether it is read from disk or decoded from memory.
    """

    number: int
    kind: str
    content: bytes
    suffix: str
    on_disk: bool


def make_case(seed: int, number: int) -> Case:
    """Make a file that depends on seed and number alone."""
    rng = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    name = list(ENCODINGS)[rng.integers(len(ENCODINGS))]
    suffix = ENCODINGS[name][0]
    if kind == "wrong suffix":
        suffix = {".png": ".jpg", ".webp": ".png"}.get(suffix, ".webp")
    content = DAMAGE.get(kind, _undamaged)(rng, _images(name)[rng.integers(4)])
    on_disk = kind in DISK_KINDS or kind == "wrong suffix" or number // len(KINDS) % DISK_INTERVAL == 0
    return Case(number, kind, content, suffix, on_disk)


# --- on disk ----------------------------------------------------------


def write_case(root: Path, case: Case) -> None:
    """Write a file to a folder of its own below the root."""
    folder = root / str(case.number)
    folder.mkdir()
    path = folder / f"photo{case.suffix}"
    if case.kind == "pipe, socket, folder":
        (os.mkfifo, _make_socket, os.mkdir)[case.number // len(KINDS) % 3](path)
    elif case.kind == "broken link":
        path.symlink_to(("gone.jpg", path.name)[case.number // len(KINDS) % 2])
    elif case.kind == "link outside the root":
        (root.parent / "outside.jpg").write_bytes(case.content)
        path.symlink_to(("../../outside.jpg", root.parent / "outside.jpg")[case.number // len(KINDS) % 2])
    else:
        path.write_bytes(case.content)
        if case.kind == "too many bytes":
            os.truncate(path, MAX_BYTES + 1 + case.number)


def _make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


# --- reading ----------------------------------------------------------


# Pixels a side to which each file is decoded too.
SMALL = 24


def read_case(root: Path, case: Case) -> str:
    """Decode a file as it is, and to a size. Return how both end; a scaled decode may reach less of the file.

    Returns:
        `read`, the reason of the error, or `escaped: ...` for anything unexpected.
    """
    mode = ("stretch", "pad", "crop")[case.number // len(KINDS) % 3]
    full, small, scaled = (
        _outcome(root, case, decode)
        for decode in (
            lambda load: load(),
            decoder_to_size(SMALL, mode, PILLOW),
            decoder_to_size(SMALL, mode, PILLOW_SCALED),
        )
    )
    if full != small:
        return f"escaped: {full}, but at a size {small}"
    return scaled if scaled.startswith("escaped") else full


def _outcome(root: Path, case: Case, decode: Callable[[EncodedImage], np.ndarray]) -> str:
    try:
        pixels = decode(_loader(root, case))
    except UnreadableImageError as error:
        message = str(error)
        is_expected = (
            error.reason in REASONS
            and message.isprintable()
            and message.endswith(" data.on_corrupt=skip.")
            and " object at 0x" not in message
        )
        return error.reason if is_expected else f"escaped: {message!r}"
    except UserError as error:
        return CHANGED if "changed while it was being read" in str(error) else f"escaped: {error}"
    # Exceptions of any other kind are what the fuzz test looks for.
    except Exception as error:
        return f"escaped: {type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"
    height, width, channels = pixels.shape
    is_expected = pixels.dtype == np.uint8 and channels == 3 and 0 < height * width <= MAX_PIXELS
    return "read" if is_expected else f"escaped: {pixels.shape} {pixels.dtype}"


# Reads a case below a root and returns its outcome, as `read_case` does.
Reader = Callable[[Path, Case], str]


def _loader(root: Path, case: Case) -> EncodedImage:
    if not case.on_disk:
        return EncodedImage(lambda: case.content, f"image {case.number}")
    with os.scandir(root / str(case.number)) as entries:
        files = list(entries)
    [result] = examine_below(root, [file.path for file in files])
    if isinstance(result, UnreadableImageError):
        raise result
    expected = digest(b"before") if case.kind == "changed after examination" else result
    return examined_image(files[0].path, expected)


@dataclass
class Report:
    """Outcomes of the files.

    Attributes:
        outcomes: number of files by kind and outcome.
        crashes: unexpected exceptions and ends of the process, each with the number of its file.
        hangs: numbers of files that took longer than the timeout.
        writes: attempts to write or remove something, each with the number of its file.
        slowest: milliseconds and number of the slowest file.
        peak: peak memory of the process in MiB.
    """

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    crashes: list[str] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    peak: int = 0

    def add(self, number: int, outcome: str, milliseconds: float, peak: int, writes: list[str]) -> None:
        self.outcomes[KINDS[number % len(KINDS)]][outcome.split(":")[0]] += 1
        self.crashes += [f"file {number}: {outcome}"] if outcome.startswith("escaped") else []
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
        lines = [f"| damage | {' | '.join(names)} |", f"| --- {'| ---: ' * len(names)}|"]
        for kind, counts in [*self.outcomes.items(), ("all", self.total)]:
            lines.append(f"| {kind} | {' | '.join(f'{counts[name]:,}' if counts[name] else '' for name in names)} |")
        lines += ["", f"{self.read + self.refused:,} files: {self.read:,} read, {self.refused:,} refused"]
        lines += [f"crashes {len(self.crashes)}, hangs {len(self.hangs)}, writes {len(self.writes)}"]
        lines += [
            *self.crashes[:20],
            *(f"file {number}: more than {TIMEOUT_SECONDS} s" for number in self.hangs),
            *self.writes[:20],
        ]
        return "\n".join(
            [*lines, f"slowest: file {self.slowest[1]}, {self.slowest[0]:,.0f} ms; peak memory {self.peak:,} MiB"]
        )


def run_in_process(count: int, seed: int, root: Path) -> Report:
    """Read the files in this process, without watching for writes."""
    report = Report()
    for case in (make_case(seed, number) for number in range(count)):
        if case.on_disk:
            write_case(root, case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            started = time.perf_counter()
            outcome = read_case(root, case)
        milliseconds = 1000 * (time.perf_counter() - started)
        report.add(case.number, outcome, milliseconds, peak=0, writes=[])
    return report


# --- in a subprocess ------------------------------------------

# Audit events of calls with side effects.
_EVENTS = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr", "shutil.move", "shutil.rmtree", "shutil.copyfile", "subprocess.Popen", "os.system",
    "os.exec", "os.fork", "os.posix_spawn", "socket.connect",
)  # fmt: skip
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _read_all(connection: Connection, reader: Reader, seed: int, numbers: range, root: Path) -> None:
    writes: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event in _EVENTS or (event == "open" and arguments[2] & _WRITE_FLAGS):
            writes.append(f"{event} {arguments}")

    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    sys.addaudithook(watch)
    connection.send("ready")
    for number in numbers:
        case = make_case(seed, number)
        # Making the file may have written something, which does not count.
        writes.clear()
        started = time.perf_counter()
        outcome = reader(root, case)
        milliseconds = 1000 * (time.perf_counter() - started)
        connection.send((number, outcome, milliseconds, _peak(), [*writes]))


def _peak() -> int:
    """Return the peak memory of this process in MiB.

    Not ru_maxrss, which a process inherits: it starts at the peak of the parent process.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))


def run_in_subprocess(
    count: int, seed: int, root: Path, reader: Reader = read_case, timeout: float = TIMEOUT_SECONDS
) -> Report:
    """Read the files in a subprocess. After a crash or a hang, another one continues with the next file.

    Args:
        count: number of files.
        seed: seed of the files.
        root: empty folder for files on disk.
        reader: reads one file; a function of a module, since it is pickled.
        timeout: seconds after which a file counts as a hang.
    """
    report = Report()
    for case in (make_case(seed, number) for number in range(count)):
        if case.on_disk:
            write_case(root, case)
    remaining = range(count)
    while remaining:
        done = _read_until_crash(report, reader, seed, remaining, root, timeout)
        remaining = remaining[done:]
    return report


def _read_until_crash(report: Report, reader: Reader, seed: int, numbers: range, root: Path, timeout: float) -> int:
    """Read files in one subprocess until it crashes or hangs. Return the number of files done, that one included."""
    receiving, sending = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_read_all, args=(sending, reader, seed, numbers, root), daemon=True)
    process.start()
    sending.close()
    try:
        # The start of the process does not count towards the timeout.
        receiving.recv()
        for done, number in enumerate(numbers, 1):
            if not receiving.poll(timeout):
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
    """Run the fuzz test, print its report and return it."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        report = run_in_subprocess(count, seed, root)
    print(f"{report}\n{time.perf_counter() - started:.0f} s")
    return report


if __name__ == "__main__":
    finished = main(*(int(argument) for argument in sys.argv[1:3]))
    sys.exit(bool(finished.crashes or finished.hangs or finished.writes))
