"""Makes the pictures of the documentation, `docs/pictures/`.

Run: make pictures, or python docs/make_pictures.py verdicts cost for some of them.

Runs are made in a temporary folder with a feature cache of its own, which is removed at the end. On one machine the
same code gives the same pictures; on another processor, accuracies differ by rounding.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from docs import picture_charts, picture_style
from docs.picture_pipeline import pipeline
from docs.picture_terminal import terminal_svg

if TYPE_CHECKING:
    from dogbreeds.tracking.mlflow_backend import Mlflow
    from dogbreeds.tracking.records import Record
    from dogbreeds.training.pixel_fit import PixelFit

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/pictures"
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Drawn dogs that Grad-CAM explains, by the index of their breed: three that are classified correctly, one that is not.
_EXPLAINED_BREEDS = (8, 11, 5, 1)
# Width of the evaluation page in CSS pixels, and image pixels per CSS pixel.
_PAGE_WIDTH, _PAGE_SCALE = 680, 2
# Blank CSS pixels below what is shown of the page.
_PAGE_MARGIN = 24
# The evaluation page is shown up to this section.
_PAGE_END = "<h2>Confused classes"
# Takes the place of the run's random id, so that the picture is the same each time.
_RUN_ID = "3f2a9c41"


@dataclass(frozen=True)
class Workplace:
    """A temporary DOGBREEDS_HOME with a feature cache of its own.

    Attributes:
        folder: an existing folder.
    """

    folder: Path

    def run(self, command: str, *overrides: str, exit_code: int = 0) -> str:
        """Run a command in a process of its own.

        Args:
            command: the module's name in `dogbreeds`.
            overrides: as they are typed.
            exit_code: the expected one.

        Returns:
            What it printed, errors and log lines included.

        Raises:
            RuntimeError: it ended with another exit code.
        """
        environment = {
            "DOGBREEDS_HOME": str(self.folder),
            "DOGBREEDS_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "80",
        }
        done = subprocess.run(
            [sys.executable, "-m", f"dogbreeds.{command}", *overrides],
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != exit_code:
            raise RuntimeError(f"{command} {' '.join(overrides)} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    @cached_property
    def records(self) -> "dict[str, Record]":
        """The attempts `lr_collapse` and `frozen` with seed 0, which are run when they are first asked for."""
        self.run("train", "--multirun", "attempt=lr_collapse,frozen", "seed=0")
        return {record.tags["choice.attempt"]: record for record in self.tracking.records()}

    @cached_property
    def tracking(self) -> "Mlflow":
        """Where the runs are recorded."""
        from dogbreeds.experiments.compose import compose_config
        from dogbreeds.experiments.recorded_runs import mlflow_tracking

        places = [f"tracking.uri=sqlite:///{self.folder}/mlruns/mlflow.db", f"tracking.artifacts={self.folder}/mlruns"]
        return mlflow_tracking(compose_config("table", places), "The pictures are drawn from the runs in MLflow.")


@contextlib.contextmanager
def workplace() -> Iterator[Workplace]:
    """Make a workplace, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        (Path(folder) / "conf").symlink_to(ROOT / "conf")
        yield Workplace(Path(folder))


# --- one function per picture: it writes the file ------------------------------


def verdicts(place: Workplace, file: Path) -> None:
    """A collapse beside a healthy curve, with the verdicts of both."""
    left, right = (_judged_curve(place, attempt) for attempt in ("lr_collapse", "frozen"))
    footer = (
        f"drawn dogs, 120 classes, {left.images:,} validation images with 95 % intervals, seed 0",
        f"measured on {_machine()}",
    )
    figure = picture_charts.verdict_curves(left, right, footer)
    title = f"Validation accuracy by epoch: {left.command} {left.verdict}, {right.command} {right.verdict}"
    picture_style.save_svg(figure, file, title)


def _judged_curve(place: Workplace, attempt: str) -> picture_charts.JudgedCurve:
    record = place.records[attempt]
    return picture_charts.JudgedCurve(
        command=f"attempt={attempt}",
        lr=f"{float(record.params['optimizer.lr']):g}",
        accuracies=place.tracking.history(record.run_id, "val/accuracy"),
        images=int(record.params["data.images.val"]),
        verdict=record.tags["verdict"],
        reason=record.tags["verdict.reason"],
        advice=record.tags["verdict.advice"],
    )


def _machine() -> str:
    """Describe this machine's processor in a few words."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = re.sub(r"\((R|TM)\)| CPU| @.*", "", found[1]) if found else platform.machine()
    return f"{textwrap.shorten(name, 40)}, {os.cpu_count()} cores"


def draw_pipeline(place: Workplace, file: Path) -> None:
    """The stages of a run, and what is cached."""
    picture_style.save_svg(pipeline(), file, "Stages of a run: frozen blocks are computed once, the rest trains")


def preflight(place: Workplace, file: Path) -> None:
    """The distance of each pixel convention from BatchNorm's running statistics."""
    from dogbreeds.core.console import quiet_stderr
    from dogbreeds.experiments.compose import compose_config, from_config
    from dogbreeds.models.preprocessing import VALUE_RANGES
    from dogbreeds.training.preflight import check_pixels

    with quiet_stderr():
        import tensorflow  # noqa: F401
    run = from_config(compose_config("train", [f"features.dir={place.folder}/cache"]))
    cache = run.features.open_cache()
    measured = run.preflight.measure_pixel_fit(run.model.build(run.seed), run.data.open(), run.data, cache)
    # There is a fit, since preflight=stop is the default.
    fit = cast("PixelFit", measured)
    refused = {
        mode: any(finding.certain for finding in check_pixels(fit, mode, run.model.pixels)) for mode in fit.distances
    }
    footer = f"miniature backbone, {run.preflight.images} training images of drawn dogs, no labels"
    figure = picture_charts.preflight_bars(fit.distances, refused, VALUE_RANGES, footer)
    picture_style.save_svg(figure, file, f"KL divergence by pixel convention, in nats: {fit}")


def refused(place: Workplace, file: Path) -> None:
    """A terminal in which a run was refused."""
    output = place.run("train", "preprocessing=torch", exit_code=1)
    file.write_text(terminal_svg("python -m dogbreeds.train preprocessing=torch", output))


def evaluation(place: Workplace, file: Path) -> None:
    """The beginning of the evaluation page."""
    from dogbreeds.tracking.records import short

    chromium = next(filter(None, map(shutil.which, _CHROMIUM)), None)
    if chromium is None:
        print(
            f"{file.name} stays as it is: it needs Chromium, and none of {', '.join(_CHROMIUM)} is on the PATH. Install"
            " one, and type python docs/make_pictures.py evaluation."
        )
        return
    run_id = short(place.records["frozen"].run_id)
    output = place.folder / "evaluation"
    place.run("evaluate", f"run={run_id}", f"output={output}")
    page = output / "report.html"
    beginning, _, _ = page.read_text().replace(run_id, _RUN_ID).partition(_PAGE_END)
    page.write_text(beginning)
    _photograph(chromium, page, file)


def _photograph(chromium: str, page: Path, file: Path) -> None:
    """Write a picture of a page, without what is blank below its last line."""
    from PIL import Image, ImageChops, ImageOps

    shot = page.with_suffix(".png")
    settings = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = [f"--window-size={_PAGE_WIDTH},1500", f"--force-device-scale-factor={_PAGE_SCALE}"]
    # A profile and temporary files of its own: no settings of the user's have an effect, and nothing stays behind.
    profile = f"--user-data-dir={page.parent / 'profile'}"
    subprocess.run(
        [chromium, *settings, *size, profile, f"--screenshot={shot}", page.as_uri()],
        env=os.environ | {"TMPDIR": str(page.parent)},
        check=True,
        capture_output=True,
    )
    with Image.open(shot) as image:
        picture = image.convert("RGB")
    blank = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, blank).getbbox()
    bottom = min(picture.height, box[3] + _PAGE_MARGIN * _PAGE_SCALE) if box else picture.height
    # On a white page its edge would not be seen.
    cropped = ImageOps.expand(picture.crop((0, 0, picture.width, bottom)), _PAGE_SCALE, picture_style.RULE)
    cropped.quantize(128).save(file, optimize=True)


def gradcam(place: Workplace, file: Path) -> None:
    """Drawn dogs beside their Grad-CAM overlays."""
    import numpy as np
    from PIL import Image

    from dogbreeds.data import drawn_dogs
    from dogbreeds.tracking.records import short

    run_id = short(place.records["frozen"].run_id)
    images = place.folder / "dogs"
    images.mkdir()
    for position, breed in enumerate(_EXPLAINED_BREEDS):
        Image.fromarray(drawn_dogs.draw("test", breed, 0)).save(images / f"{position}.png")
    output = place.folder / "predictions.jsonl"
    where = (f"images={images}", f"explain_dir={place.folder}/explained", f"output={output}")
    place.run("predict", f"run={run_id}", "explain=true", "format=jsonl", *where)
    pairs = []
    for line, breed in zip(output.read_text().splitlines(), _EXPLAINED_BREEDS, strict=True):
        prediction: dict[str, Any] = json.loads(line)
        overlay = np.asarray(Image.open(prediction["explained"]))
        pairs.append(
            picture_charts.Explained(
                image=np.asarray(Image.open(prediction["image"])),
                # Without the caption below it, which would be too small here.
                overlay=overlay[: overlay.shape[1]],
                predicted=prediction["class"],
                probability=prediction["probability"],
                label=drawn_dogs.breed_name(breed),
            )
        )
    footer = "right of each image: Grad-CAM, bright where the image raised the class's score"
    figure = picture_charts.overlay_pairs(pairs, footer)
    picture_style.save_png(figure, file, scale=1.3)


def cost(place: Workplace, file: Path) -> None:
    """Seconds in the way that Keras' guide recommends and with this project, as measured for the benchmarks' page."""
    measured = json.loads((FOLDER / "cost.json").read_text())
    costs = [picture_charts.Cost(**values) for values in measured["costs"]]
    footer = (
        "Every image passes the frozen backbone once, in both. All start from image files,",
        "with nothing cached.",
        f"{measured['setup']}. {measured['machine']}, {measured['date']}.",
    )
    figure = picture_charts.cost_bars(costs, footer)
    title = "; ".join(f"{item.work}: {item.theirs} s with Keras, {item.ours} s with dogbreeds" for item in costs)
    picture_style.save_svg(figure, file, title)


# --- command -------------------------------------------------------------------

PICTURES: dict[str, Callable[[Workplace, Path], None]] = {
    "verdicts.svg": verdicts,
    "pipeline.svg": draw_pipeline,
    "preflight.svg": preflight,
    "refused.svg": refused,
    "evaluation.png": evaluation,
    "gradcam.png": gradcam,
    "cost.svg": cost,
}


def main(names: list[str], folder: Path = FOLDER) -> None:
    """Make pictures, and print each file with its size.

    Args:
        names: of the pictures, without the ending; empty for all.
        folder: that they are written to.
    """
    known = {Path(name).stem: name for name in PICTURES}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(
            f"error: {unknown[0]} is not a picture. The pictures are {', '.join(known)}. Type python"
            " docs/make_pictures.py verdicts, or no name for all."
        )
    with workplace() as place:
        for name in names or known:
            file = folder / known[name]
            PICTURES[known[name]](place, file)
            if file.exists():
                print(f"{file.stat().st_size / 1024:6.0f} KB  {file}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
