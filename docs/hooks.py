"""Hooks of MkDocs: add the generated pages and the shared pictures, and fill the markers in pages written by hand."""

from typing import Any

import generated
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, the pictures and the notebooks to the site's files."""
    for path, text in generated.pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in (generated.pictures() | generated.notebooks()).items():
        files.append(File.generated(config, path, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the markers of a page."""
    return generated.fill(markdown, page.file.src_uri)
