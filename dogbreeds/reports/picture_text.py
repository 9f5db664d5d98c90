"""Names in Matplotlib's figures: drawn as they are, in whichever installed font has their characters."""

import functools
import unicodedata
from typing import TYPE_CHECKING

from dogbreeds.core.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture_text(text: str) -> str:
    """Return a text as Matplotlib can draw it.

    `$` is escaped, which would begin a formula. A character that no installed font has is replaced: a symbol by its
    name in brackets, such as `[dog face]`, and a letter by its code, such as `\\u72ac`.
    """
    drawable = "".join(character if _has_glyph(character) else _spelled_out(character) for character in visible(text))
    return drawable.replace("$", r"\$")


def use_fallback_fonts(figure: "Figure") -> "Figure":
    """Draw a figure's characters that the default font lacks in other installed fonts; return the figure."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        families = {
            _fallback_font(character) for character in text.get_text() if ord(character) not in _default_glyphs()
        }
        if found := sorted(family for family in families if family is not None):
            text.set_fontfamily([*text.get_fontfamily(), *found])
    return figure


def _has_glyph(character: str) -> bool:
    return ord(character) in _default_glyphs() or _fallback_font(character) is not None


def _spelled_out(character: str) -> str:
    category = unicodedata.category(character)
    # Invisible by themselves: they join characters, or change the look of the one before.
    if category in ("Cf", "Mn", "Sk"):
        return ""
    if category == "So":
        return f"[{unicodedata.name(character, f'U+{ord(character):X}').lower()}]"
    return character.encode("unicode_escape").decode()


@functools.cache
def _default_glyphs() -> frozenset[int]:
    """Code points that Matplotlib's default font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


@functools.cache
def _fallback_font(character: str) -> str | None:
    """Return an installed font family that has a character; None if no font has it."""
    return next((family for family, glyphs in _installed_glyphs().items() if ord(character) in glyphs), None)


@functools.cache
def _installed_glyphs() -> dict[str, frozenset[int]]:
    """Code points that each installed font family has, sans-serif families first. Reading all fonts takes a second."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    # The last resort has one box for all characters of a script.
    families = {entry.name for entry in fontManager.ttflist if not entry.name.startswith("Last Resort")}
    return {
        family: frozenset(get_font(findfont(FontProperties(family=[family]))).get_charmap())
        for family in sorted(families, key=lambda name: ("Sans" not in name, name))
    }
