"""The last checks of a run's preflight, which need its inputs: near-duplicates, and the loss before the first step."""

import numpy as np

from dogbreeds.evaluation.metrics import score
from dogbreeds.experiments.copies_across_splits import check_near_duplicates
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training import preflight
from dogbreeds.training.loop import predict
from dogbreeds.training.rows import Rows


def finish_preflight(prepared: PreparedRun, inputs: TrainingInputs, tracker: Tracker) -> None:
    """Run the last of the preflight's checks, and record all findings."""
    if prepared.run.preflight.action == "none":
        tracker.tags({"preflight": "not checked"})
        return
    copies = check_near_duplicates(prepared, inputs)
    prepared.run.preflight.report(copies)
    findings = [*prepared.findings, *copies, *_check_initial_loss(prepared, inputs, tracker)]
    tracker.tags({"preflight": " ".join(finding.message for finding in findings)[:4000] or "passed"})


def _check_initial_loss(prepared: PreparedRun, inputs: TrainingInputs, tracker: Tracker) -> list[preflight.Finding]:
    rows = inputs.train(0)
    sample = np.linspace(0, len(rows) - 1, min(prepared.run.preflight.images, len(rows))).astype(int)
    part = Rows(rows.array, rows.indices[sample], rows.labels[sample], rows.transform)
    loss = score(predict(prepared.network, part), part.labels).loss
    tracker.metrics({"preflight/initial_loss": loss})
    findings = preflight.check_initial_loss(loss, len(prepared.dataset.class_names), prepared.parent is None)
    prepared.run.preflight.report(findings)
    return findings
