"""Reads the specs of the package, without importing them: which values each field allows, and what it means."""

import ast
import contextlib
import functools
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dogbreeds"
# Entry of a docstring's section `Attributes:`, with its continuation lines.
_ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n     +\S.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Field:
    """A field of a spec.

    Attributes:
        allowed: values that it allows, in words; empty if the declaration does not tell.
        meaning: its entry in the class's docstring; may be empty.
    """

    allowed: str
    meaning: str


@functools.cache
def _module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    return PACKAGE.parent / f"{module.replace('.', '/')}.py"


def spec_fields(target: str) -> dict[str, Field]:
    """Return the fields of a spec class, with those that it inherits.

    Args:
        target: dotted path of the class. One outside the package has no fields.
    """
    module, _, name = target.rpartition(".")
    if not module.startswith("dogbreeds.") or not _file(module).is_file():
        return {}
    tree = _module(_file(module))
    cls = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if cls is None:
        return {}
    fields: dict[str, Field] = {}
    for base in cls.bases:
        if isinstance(base, ast.Name):
            fields |= spec_fields(_resolve(base.id, module, tree))
    meanings = _attribute_meanings(ast.get_docstring(cls) or "")
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            fields[node.target.id] = Field(_allowed(node.value, module), meanings.get(node.target.id, ""))
    return fields


def _resolve(name: str, module: str, tree: ast.Module) -> str:
    """Return the dotted path of a name that a module uses."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return f"{node.module}.{name}"
    return f"{module}.{name}"


def _attribute_meanings(docstring: str) -> dict[str, str]:
    section = docstring.partition("Attributes:\n")[2]
    return {name: " ".join(text.split()) for names, text in _ATTRIBUTE.findall(section) for name in names.split(", ")}


def _allowed(call: ast.Call, module: str) -> str:
    """Describe the values that a declaration such as `number(above=0, example=1)` allows."""
    kind = ast.unparse(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    null = ", or null" if "optional" in keywords else ""
    texts = {
        "number": _interval(keywords),
        "integer": f"integer {_interval(keywords)}{null}",
        "one_of": f"{', '.join(choices)}{null}" if (choices := _choices(call, module)) else "",
        "boolean": "true, false",
        "seed": "integer [0,\N{NO-BREAK SPACE}4294967295]",
        "text": f"text{null}",
        "path": f"path{null}",
        "any_path": "path, or null",
        "integers": "list of integers above 0",
        "texts": "list of texts",
        "regular_expression": "regular expression, or null",
        "mapping": "names with a plain value each, or null",
    }
    return texts.get(kind, "")


def _interval(keywords: dict[str | None, ast.expr]) -> str:
    """Describe the bounds of a number: as an interval if there are two, else with a sign."""
    literals = {name: ast.literal_eval(value) for name, value in keywords.items() if name in _SIGNS}
    bounds = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in literals.items()}
    if len(bounds) == 2:
        (lower, low), (upper, high) = bounds.items()
        return f"{'(' if lower == 'above' else '['}{low},\N{NO-BREAK SPACE}{high}{')' if upper == 'below' else ']'}"
    return " ".join(f"{_SIGNS[name]}\N{NO-BREAK SPACE}{bound}" for name, bound in bounds.items() if name)


# Signs of a number's bounds. Declarations give the lower one first.
_SIGNS = {"above": ">", "at_least": "≥", "below": "<", "at_most": "≤"}


def _choices(call: ast.Call, module: str) -> list[str]:
    """Return the words that `one_of` allows; those of a constant are looked up in its module."""
    words: list[str] = []
    for argument in call.args:
        name = argument.value if isinstance(argument, ast.Starred) else argument
        if isinstance(name, ast.Name):
            words += _constant(_resolve(name.id, module, _module(_file(module))))
        else:
            words.append(str(ast.literal_eval(argument)))
    return words


def _constant(path: str) -> list[str]:
    """Return the text, or the tuple of texts, that a module assigns to a name; nothing if it is computed."""
    module, _, name = path.rpartition(".")
    for node in _module(_file(module)).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == name for each in node.targets
        ):
            with contextlib.suppress(ValueError):
                found = ast.literal_eval(node.value)
                return [found] if isinstance(found, str) else list(found)
    return []
