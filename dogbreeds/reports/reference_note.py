"""A sentence on the reference probes of a table's rows, for tables without their column."""

from collections.abc import Sequence

from dogbreeds.reports.attempt_row import AttemptRow


def notes(rows: Sequence[AttemptRow]) -> list[str]:
    """Describe the accuracies of the reference probes, once for rows with the same one, such as on the same features.

    Args:
        rows: of a table.

    Returns:
        One sentence in a list; empty if no run recorded a probe.
    """
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.reference_accuracy is not None:
            names.setdefault(row.cells()["reference"], []).append(row.attempt)
    found = "; ".join(f"{accuracy} ({', '.join(attempts)})" for accuracy, attempts in names.items())
    return [f"Reference probe, validation accuracy: {found}."] if found else []
