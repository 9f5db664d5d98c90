"""README: short enough to be read. Its commands, files and make targets are tested with those of the documentation."""

import re

from tests import documentation
from tests.documentation import ROOT

README = documentation.README.read_text()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1300


def test_links_and_pictures_of_the_readme_exist() -> None:
    linked = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert len(linked) > 10
    assert [file for file in linked if not (ROOT / file).is_file()] == []
