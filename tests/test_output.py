import pytest

from dogbreeds.output import folder
from dogbreeds.spec import Refused


def test_what_was_written_takes_its_place_at_once(tmp_path) -> None:
    place = tmp_path / "deep/place"
    with folder(place) as written:
        (written / "page.html").write_text("new")
        (written / "more").mkdir()
        (written / "more/a").write_text("a")
        assert not (place / "page.html").exists()
    (place / "mine.txt").write_text("another's")
    with folder(place) as written:
        (written / "page.html").write_text("newer")
        (written / "more").mkdir()
    assert {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()} == {
        "page.html": "newer",
        "mine.txt": "another's",
    }


def test_what_was_cut_off_leaves_nothing(tmp_path) -> None:
    with folder(tmp_path / "place") as written:
        (written / "page.html").write_text("old")
    with pytest.raises(KeyboardInterrupt), folder(tmp_path / "place") as written:
        (written / "page.html").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["page.html"]
    assert (tmp_path / "place/page.html").read_text() == "old"


def test_a_place_that_cannot_be_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Refused, match=r"file cannot be made \(File exists\). output must be a folder that you may write to. Type output=<folder>."),
        folder(tmp_path / "file"),
    ):
        pass
