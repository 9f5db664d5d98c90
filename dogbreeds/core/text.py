"""Text that is safe to print, store and compare."""

import hashlib
import re
from pathlib import Path

# Control characters, line separators, and surrogates, which stand for bytes that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(name: str) -> str:
    """Escape the unprintable characters of a file name.

    Different names stay different, because backslashes are doubled.
    """
    return visible(name.replace("\\", "\\\\"))


def visible(text: str) -> str:
    """Escape unprintable characters for display, such as a terminal's control characters in the name of a run."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def digest(content: bytes) -> str:
    """Return the BLAKE2b digest of some bytes, 32 hexadecimal characters."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file's content, as `digest` does, without reading it into memory at once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def mask_passwords(text: str) -> str:
    """Replace the passwords in a text's addresses by `***`."""
    text = re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)
