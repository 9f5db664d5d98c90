"""Markdown from the plain text of config comments and help texts."""

import re
from collections.abc import Iterable, Sequence

# What is set as code: `...` in the text, overrides such as head=mlp, dotted settings, files, commands and environment
# variables.
_CODE = re.compile(
    r"`[^`]+`"
    r"|'[\w.]+=[^']*'"
    r'|"[\w.]+=[^"]*"'
    r"|\[[\w.]+=[^\]]*\]"
    r"|pip install '[^']*'"
    r"|--cfg job(?: --resolve)?|--[a-z][\w-]*"
    r"|\b[\w./]+=(?:[\w./:+-]*\([^)]*\)|\[[^\]]*\]|[^\s,;:)]*[\w\]/)])"
    r"|\b(?:conf|dogbreeds|multirun|mlruns)/[\w./<>-]*[\w/>]"
    r"|\b(?:data|features|model|optimizer|phase|preflight|unfreeze|head|strategy|tracking|baseline|hydra)\.[a-z_.]+\b"
    r"|\bmake (?:ui|table|clear|cache|faults)\b"
    r"|\bpython -m dogbreeds\.\w+(?: [a-z_.]+=\S+)*"
    r"|\b(?:DOGBREEDS|MLFLOW|HYDRA)_[A-Z_]+\b"
)
_SPECIAL = re.compile(r"([\\`*_\[\]<>|{}])")


def prose(text: str) -> str:
    """Escape a text for Markdown, and set overrides, settings and paths in it as code."""
    parts: list[str] = []
    end = 0
    for match in _CODE.finditer(text):
        parts += [_escape(text[end : match.start()]), code(match[0].strip("`"))]
        end = match.end()
    return "".join([*parts, _escape(text[end:])])


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: str) -> str:
    """Return a code span, which may stand in a table."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", "\\|")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; empty without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}", *lines])


def shell(commands: Iterable[str]) -> str:
    """Return a fenced block of commands."""
    return "\n".join(["```sh", *commands, "```"])


def page(*blocks: str) -> str:
    """Join the blocks of a page, leaving out the empty ones."""
    return "\n\n".join(block for block in blocks if block) + "\n"
