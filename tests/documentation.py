"""What README and the documentation's pages say, with their generated parts, and the commands in it."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import generated  # noqa: E402 - of the folder above

PAGES = ROOT / "docs/pages"
README = ROOT / "README.md"
WRITTEN = [*sorted(PAGES.rglob("*.md")), ROOT / "docs/SECURITY.md", README]
# Text by page, with what is generated in it.
TEXTS = {path: generated.fill(path.read_text(), path.name) for path in WRITTEN}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE_COMMAND = re.compile(r"`((?:make|python|pip) [^`…<]+)`")
COMMENT = re.compile(r"(?:^|\s+)#\s.*$", re.MULTILINE)
CONTINUED = re.compile(r"\s*\\\n\s*|(?<=\|)\n\s*")


def blocks(text: str, language: str) -> list[str]:
    """Return the content of a page's fenced blocks of a language."""
    return [content for _, name, content in FENCE.findall(text) if name == language]


def shell_lines(text: str) -> Iterator[str]:
    """Yield the lines of a page's shell blocks, each continued line as one, without comments."""
    for block in blocks(text, "sh"):
        yield from filter(None, map(str.strip, CONTINUED.sub(" ", COMMENT.sub("", block)).splitlines()))


def command_lines(path: Path) -> list[list[str]]:
    """Return the words of each line of a page's shell blocks."""
    return [shlex.split(line) for line in shell_lines(TEXTS[path])]


def documented_lines(path: Path) -> Iterator[str]:
    """Yield every command of a page: the lines of its shell blocks, and the commands in its sentences."""
    yield from shell_lines(TEXTS[path])
    yield from INLINE_COMMAND.findall(FENCE.sub("", TEXTS[path]))


def typed_commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the overrides of every command of the package in a page's shell blocks."""
    for words in command_lines(path):
        for index, word in enumerate(words):
            if word.startswith("dogbreeds.") and words[index - 1] == "-m":
                end = next((end for end in range(index, len(words)) if words[end] in ("|", "&&", "&")), len(words))
                yield word.removeprefix("dogbreeds."), words[index + 1 : end]
