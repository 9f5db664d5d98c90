import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.core.files import folder, sink

OWN = ("page.html", "more", "old.png")


def test_what_was_written_takes_its_place_at_once(tmp_path) -> None:
    place = tmp_path / "deep/place"
    with folder(place, OWN) as written:
        (written / "page.html").write_text("new")
        (written / "old.png").write_text("old")
        (written / "more").mkdir()
        (written / "more/a").write_text("a")
        assert not (place / "page.html").exists()
    (place / "mine.txt").write_text("another's")
    with folder(place, OWN) as written:
        (written / "page.html").write_text("newer")
        (written / "more").mkdir()
    assert {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()} == {
        "page.html": "newer",
        "mine.txt": "another's",
    }


def test_what_was_cut_off_leaves_nothing(tmp_path) -> None:
    with folder(tmp_path / "place", OWN) as written:
        (written / "page.html").write_text("old")
    with pytest.raises(KeyboardInterrupt), folder(tmp_path / "place", OWN) as written:
        (written / "page.html").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["page.html"]
    assert (tmp_path / "place/page.html").read_text() == "old"


def test_a_place_that_cannot_be_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            UserError,
            match=(
                r"file cannot be made \(File exists\). output must be a folder that you may write to. Type"
                r" output=<folder>."
            ),
        ),
        folder(tmp_path / "file", OWN),
    ):
        pass


def test_a_file_is_whole_or_absent(tmp_path) -> None:
    place = tmp_path / "deep/answers.csv"
    with pytest.raises(KeyboardInterrupt), sink(str(place), "breeds.csv") as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert list(place.parent.iterdir()) == []
    with sink(str(place), "breeds.csv") as stream:
        stream.write("photo,breed\n")
        assert not place.exists()
    assert place.read_text() == "photo,breed\n"
    assert [path.name for path in place.parent.iterdir()] == ["answers.csv"]


@pytest.mark.parametrize("place", ["/dev/null", "/proc", "/proc/none/x"])
def test_a_place_that_is_no_file_is_refused(place: str) -> None:
    with (
        pytest.raises(
            UserError, match=f"{place} cannot be written .* output must be a file. Type output=breeds.csv, for example."
        ),
        sink(place, "breeds.csv"),
    ):
        pass


def test_other_folders_are_left_as_they_are(tmp_path) -> None:
    (tmp_path / "page.txt").write_text("mine")
    with (
        pytest.raises(
            UserError,
            match=(
                r"holds other things, such as page.txt. output must be a new folder, an empty one, or an earlier"
                r" result. Type output="
            ),
        ),
        folder(tmp_path, OWN),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["page.txt"]


def test_what_killed_processes_left_goes_and_a_new_folder_is_not_left_empty(tmp_path) -> None:
    gone = tmp_path / "place/.99999999.part"
    gone.mkdir(parents=True)
    with folder(tmp_path / "place", OWN) as written:
        (written / "page.html").write_text("new")
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["page.html"]
    with pytest.raises(ZeroDivisionError), folder(tmp_path / "other", OWN):
        raise ZeroDivisionError
    assert not (tmp_path / "other").exists()
