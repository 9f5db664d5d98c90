"""Pictures of the documentation: drawn from small inputs, and the files that are committed."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from docs import make_pictures
from docs.picture_charts import Cost, Explained, JudgedCurve, cost_bars, overlay_pairs, preflight_bars, verdict_curves
from docs.picture_pipeline import pipeline
from docs.picture_style import WIDTH, save_png
from docs.picture_terminal import terminal_svg
from dogbreeds.models.preprocessing import MODES, VALUE_RANGES

_MIN_TEXT_PIXELS = 11
_MAX_BYTES = 200_000


def _collapse_and_healthy_curve() -> Figure:
    reason = (
        "validation accuracy peaked at 38.4 % in epoch 1 and fell to 8.7 %, by 18 standard errors or more in the last"
        " two epochs"
    )
    advice = "The learning rate is too high for this head: type optimizer.lr=1e-3, or head=batchnorm."
    collapse = JudgedCurve("attempt=lr_collapse", "0.01", (0.384, 0.13, 0.087), 1200, "collapsed", reason, advice)
    healthy = JudgedCurve(
        "attempt=frozen", "0.001", (0.79, 0.92, 0.91), 1200, "learned", "best 92.0 %", "Fine-tune it."
    )
    return verdict_curves(collapse, healthy, ["what was measured", "on what machine"])


def _preflight_bars() -> Figure:
    distances = {mode: 0.001 * 7**rank for rank, mode in enumerate(MODES)}
    return preflight_bars(distances, {mode: mode != "raw" for mode in MODES}, VALUE_RANGES, "what was measured")


def _overlay_pairs() -> Figure:
    image = np.zeros((8, 8, 3), np.uint8)
    names = "008-chocolate-spotted-prick", "001-red-saddle-prick"
    return overlay_pairs([Explained(image, image, names[0], 0.97, name) for name in names], "what is shown")


_DRAWN: list[Callable[[], Figure]] = [
    _collapse_and_healthy_curve,
    _preflight_bars,
    _overlay_pairs,
    pipeline,
    lambda: cost_bars([Cost("Sweep", "predict, fit", 447.6, 19.9), Cost("Fine-tune", "fit", 117.9, 26.0)], ["machine"]),
]


def _loaded(svg: str) -> list[str]:
    """Everything that a browser would load from elsewhere to show the picture."""
    return re.findall(r"@font-face|@import|url\((?!#)[^)]*|href=\"(?!#)[^\"]*", svg)


@pytest.mark.parametrize("draw", _DRAWN)
def test_drawing_has_legible_text_inside_the_card_that_does_not_overlap(draw: Callable[[], Figure]) -> None:
    figure = draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    assert len(texts) >= 3
    assert min(text.get_fontsize() for text in texts) / 0.75 >= _MIN_TEXT_PIXELS
    card = figure.bbox
    for text, box in boxes:
        assert card.x0 < box.x0 < box.x1 < card.x1, text
        assert card.y0 < box.y0 < box.y1 < card.y1, text
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        assert min(one.x1, other.x1) <= max(one.x0, other.x0) or min(one.y1, other.y1) <= max(one.y0, other.y0), (
            first,
            second,
        )


def test_make_pictures_draws_the_same_bytes_again_and_names_the_measured_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_pictures.main(["pipeline", "cost"], folder)
        drawn.append([(folder / name).read_text() for name in ("pipeline.svg", "cost.svg")])
    assert drawn[0] == drawn[1]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()][:2] == ["KB", "KB"]
    title = ElementTree.fromstring(drawn[0][1]).findtext("{http://www.w3.org/2000/svg}title") or ""
    for cost in json.loads((make_pictures.FOLDER / "cost.json").read_text())["costs"]:
        assert f"{cost['theirs']} s" in title
        assert f"{cost['ours']} s" in title


def test_terminal_wraps_at_its_columns_and_loads_nothing() -> None:
    words = " ".join(f"word{number}" for number in range(40))
    svg = terminal_svg("python -m dogbreeds.train <&", f"{words}\nerror: <refused> & told", columns=30)
    assert _loaded(svg) == []
    lines: dict[str, str] = {}
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        y = element.get("y", "")
        lines[y] = lines.get(y, "") + (element.text or "").replace("\N{NO-BREAK SPACE}", " ")
    typed, *printed = (line.strip() for line in lines.values() if line.strip())
    assert typed == "$ python -m dogbreeds.train <&"
    assert max(map(len, printed)) <= 30
    assert " ".join(printed) == f"{words} error: <refused> & told"


def test_png_has_transparent_corners_and_the_colours_of_the_figure(tmp_path: Path) -> None:
    save_png(_overlay_pairs(), tmp_path / "picture.png", scale=1)
    with Image.open(tmp_path / "picture.png") as file:
        assert file.mode == "P"
        picture = file.convert("RGBA")
    assert picture.width == WIDTH
    assert picture.getpixel((0, 0))[3] == 0
    # The card's background, and the first image, which is black.
    assert min(picture.getpixel((12, 12))) > 250
    assert picture.getpixel((60, 60)) == (0, 0, 0, 255)


def test_evaluation_stays_as_it_is_without_chromium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluation.png"
    file.write_bytes(b"earlier")
    monkeypatch.setenv("PATH", str(tmp_path))
    make_pictures.main(["evaluation"], tmp_path)
    assert file.read_bytes() == b"earlier"
    assert "chromium" in capsys.readouterr().out


def test_command_line_refuses_an_unknown_picture() -> None:
    done = subprocess.run(
        [sys.executable, make_pictures.__file__, "cover"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(make_pictures.ROOT)},
    )
    assert done.returncode == 1
    assert "cover" in done.stderr
    assert all(Path(name).stem in done.stderr for name in make_pictures.PICTURES)


@pytest.mark.parametrize("name", make_pictures.PICTURES)
def test_committed_picture_is_small_and_loads_nothing(name: str) -> None:
    file = make_pictures.FOLDER / name
    assert 0 < file.stat().st_size < _MAX_BYTES
    if name.endswith(".svg"):
        ElementTree.parse(file)
        assert _loaded(file.read_text()) == []
    else:
        with Image.open(file) as picture:
            assert picture.width >= WIDTH
