"""Text that can be printed, saved and compared."""

import hashlib
import re

# Control characters, ends of lines, and bytes that are not UTF-8
ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(name: str) -> str:
    """A file's name as text that can be printed, saved and compared: what is `ODD` in it is escaped, so that two names stay two."""
    return ODD.sub(lambda found: found[0].encode("unicode_escape").decode(), name.replace("\\", "\\\\"))


def digest(content: bytes) -> str:
    """A short name for some content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it."""
    text = re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)
