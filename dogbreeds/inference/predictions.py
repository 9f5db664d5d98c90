"""Predictions of images, and their formats for programs: JSON lines and CSV."""

import json
from dataclasses import dataclass

from dogbreeds.core.text import csv_rows


@dataclass(frozen=True)
class Prediction:
    """The prediction of an image, or why there is none.

    Attributes:
        image: its name.
        top: most probable classes and their probabilities in [0, 1], the most probable first.
        error: message; empty if the image was read.
        overlay: path of the Grad-CAM overlay, if one was drawn.
    """

    image: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
    overlay: str | None = None


class JsonLines:
    """Formats a prediction as one JSON object on a line."""

    heading = ""

    def __call__(self, prediction: Prediction) -> str:
        return json.dumps(_json_object(prediction), ensure_ascii=False) + "\n"


def _json_object(prediction: Prediction) -> dict[str, object]:
    if prediction.error:
        return {"image": prediction.image, "error": prediction.error}
    top = [{"class": name, "probability": _rounded(probability)} for name, probability in prediction.top]
    overlay = {"explained": prediction.overlay} if prediction.overlay else {}
    return {"image": prediction.image, **top[0], "top": top} | overlay


def _rounded(probability: float) -> float:
    return float(f"{probability:.6g}")


class Csv:
    """Formats a prediction as one CSV row.

    Args:
        top: classes per row.
        overlays: whether there is a column for overlay paths.
    """

    def __init__(self, top: int, overlays: bool):
        self._top = top
        self._overlays = overlays
        suffixes = ["", *(f"_{number}" for number in range(2, top + 1))]
        columns = [f"{name}{suffix}" for suffix in suffixes for name in ("class", "probability")]
        self.heading = csv_rows([["image", *columns, *(["explained"] if overlays else []), "error"]])

    def __call__(self, prediction: Prediction) -> str:
        cells = [cell for name, probability in prediction.top for cell in (name, _rounded(probability))]
        overlay = [prediction.overlay or ""] if self._overlays else []
        return csv_rows([[prediction.image, *(cells or [""] * (2 * self._top)), *overlay, prediction.error]])
