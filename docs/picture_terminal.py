"""Picture of a terminal: a command and what it printed, as SVG that loads nothing."""

import html
import io

# Rich's own template loads a font from a server, which GitHub blocks, and so do readers who are offline. Rich gives
# each stretch of text its length, so that any monospaced font fits.
_TEMPLATE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title><!--title--></title>
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}}
.{unique_id}-title {{ font: bold 18px sans-serif }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
# Colours of the prompt and of the word `error:`. The program prints none.
_PROMPT_STYLE, _COMMAND_STYLE, _ERROR_STYLE = "bold green", "bold white", "bold red"


def terminal_svg(command: str, output: str, columns: int = 80) -> str:
    """Draw a terminal with a command that was typed in it and what it printed, wrapped between words.

    Args:
        command: one line.
        output: plain text.
        columns: of the terminal.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    # A column of margin on either side, and a line of it below.
    terminal = Console(record=True, width=columns + 2, file=io.StringIO(), force_terminal=True, highlight=False)
    text = Text.assemble(("$ ", _PROMPT_STYLE), (command, _COMMAND_STYLE), "\n", output.strip("\n"))
    text.highlight_words(["error:"], _ERROR_STYLE)
    terminal.print(Padding(text, (0, 1, 1, 1)))
    template = _TEMPLATE.replace("<!--title-->", html.escape(f"Terminal: {command}"))
    return terminal.export_svg(title="", code_format=template, unique_id="terminal")
