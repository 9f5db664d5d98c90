"""Record a probe in MLflow: a run with the table, and a run nested below it for each backbone.

They have no verdict and no phase. So tables, `run=best` and fine-tunes never take them for attempts.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from dogbreeds.evaluation.backbone_probe import BackboneProbe, ProbedBackbone
from dogbreeds.experiments.probe_models import ProbeModel
from dogbreeds.reports import probe_rendering
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.tracking.tracking import Tracker

# Groups whose settings a backbone's run has as parameters.
_GROUPS = ("model", "preprocessing", "data")


@contextlib.contextmanager
def recorded(models: Sequence[ProbeModel], origin: RunOrigin) -> Iterator[Callable[[BackboneProbe], None]]:
    """Open the run of a probe.

    Args:
        models: all backbones.
        origin: what the probe was composed from.

    Yields:
        A function that records the results; it does nothing with tracking=none.
    """
    tracking = models[0].run.tracking
    if not isinstance(tracking, Mlflow):
        yield lambda probe: None
        return
    with tracking.open(origin) as tracker:
        yield lambda probe: _record(tracking, tracker, origin, models, probe)


def _record(
    tracking: Mlflow, tracker: Tracker, origin: RunOrigin, models: Sequence[ProbeModel], probe: BackboneProbe
) -> None:
    data: dict[str, object] = {"data.name": probe.data, "data.classes": probe.classes}
    data |= {f"data.images.{name}": size for name, size in probe.sizes.items()}
    tracker.parameters(data)
    tracker.tags({"probe": "backbones", "probe.best": probe.best.name})
    tracking.add_text(tracker.run_id, "probe.md", probe_rendering.as_markdown(probe), probe.best.metrics())
    tracking.add_text(tracker.run_id, "probe.html", probe_rendering.as_html(probe), {})
    statuses = (
        {each.name: ("measured", "") for each in probe.measured}
        | {each.probed.name: ("stopped", f"compared with {each.best}: {each.pair}") for each in probe.stopped}
        | {each.name: ("failed", each.reason) for each in probe.failed}
    )
    results = {each.name: each for each in (*probe.measured, *(stopped.probed for stopped in probe.stopped))}
    # Samples of processor and memory are those of the probe's run.
    quiet = dataclasses.replace(tracking, system_metrics_seconds=0.0)
    for model in models:
        settings = {name: value for name, value in model.run.parameters().items() if name.split(".")[0] in _GROUPS}
        own = dataclasses.replace(origin, name=f"probe {model.name}"[:250])
        with quiet.open(own, parent_run_id=tracker.run_id) as backbone:
            status, reason = statuses[model.name]
            backbone.parameters(settings | data)
            backbone.tags({"probe": status, "probe.reason": reason[:4000]})
            if model.name in results:
                _record_results(backbone, results[model.name])


def _record_results(tracker: Tracker, probed: ProbedBackbone) -> None:
    tracker.parameters(probed.fingerprints | {"parameters.backbone": probed.parameters})
    tracker.metrics(probed.metrics())
    tracker.tags(probed.baseline.tags() | {"reference": probed.method})
