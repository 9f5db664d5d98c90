"""Gate that a run must pass before a registered model's alias points to it.

The run's verdict must be good. Where the alias points to another run already, the new one must beat it: on the same
test images, by a paired test. A higher accuracy alone does not suffice: of two equal networks one has it by chance.
"""

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import Record, short

# Validation chose the best epoch, so only test is unbiased.
_TEST_SPLIT = "test"
_PROMOTABLE_VERDICTS = ("learned", "better_than_frozen", "no_better_than_frozen")


def check_verdict(record: Record, target: str) -> None:
    """Check that a run ended well.

    Args:
        record: the run.
        target: model and alias that it is to be registered as, such as `dogs@champion`.

    Raises:
        UserError: its verdict is none of `_PROMOTABLE_VERDICTS`, however good an earlier epoch was.
    """
    verdict = record.tags["verdict"]
    if verdict not in _PROMOTABLE_VERDICTS:
        *first, last = (name.replace("_", " ") for name in _PROMOTABLE_VERDICTS)
        remedy = "train on data with more test images" if verdict == "undecided" else "train a run that ends better"
        raise UserError(
            f"Run {short(record.run_id)} was not registered as {target}: its verdict is {verdict.replace('_', ' ')}. It"
            f" must be {', '.join(first)} or {last}. Type run=<another run's id>, or {remedy}; the exported"
            " files stay."
        )


def compare_on_test(
    record: Record,
    current: Record,
    predictions: dict[str, Predictions],
    current_predictions: dict[str, Predictions],
    target: str,
) -> PairedOutcome:
    """Compare a run with the one that the alias points to, image by image on the test split.

    Args:
        record: the run.
        current: the run that the alias points to.
        predictions: the run's predictions, by split.
        current_predictions: the current run's predictions, by split.
        target: model and alias, such as `dogs@champion`.

    Returns:
        The paired outcome, in which gained images are those that only `record` has right.

    Raises:
        UserError: the two were not tested on the same images and labels.
    """
    for tested, by_split in ((record, predictions), (current, current_predictions)):
        if _TEST_SPLIT not in by_split:
            raise _not_comparable(record, current, target, f"run {short(tested.run_id)} has none")
    ours = predictions[_TEST_SPLIT]
    theirs = current_predictions[_TEST_SPLIT]
    labels = dict(zip(ours.ids, ours.labels.tolist(), strict=True))
    current_labels = dict(zip(theirs.ids, theirs.labels.tolist(), strict=True))
    if labels != current_labels:
        shared = len(labels.keys() & current_labels.keys())
        difference = (
            f"they share {shared:,} of {len(ours.ids):,} and {len(theirs.ids):,}"
            if shared < max(len(ours.ids), len(current_labels))
            else "some have other classes"
        )
        raise _not_comparable(record, current, target, difference)
    return ours.compare_with(theirs, _TEST_SPLIT)


def _not_comparable(record: Record, current: Record, target: str, why: str) -> UserError:
    return UserError(
        f"Run {short(record.run_id)} was not registered: {target} is run {short(current.run_id)}, and the two have no"
        f" test images in common ({why}). Both must have been tested on the same images. Train both on the same data,"
        " or type another name, such as register=other."
    )


def check_improvement(record: Record, current: Record, pair: PairedOutcome, alpha: float, target: str) -> None:
    """Check that a run beats the one that the alias points to.

    Args:
        record: the run.
        current: the run that the alias points to.
        pair: outcome of `compare_on_test`.
        alpha: level that the exact paired test's p-value must be below.
        target: model and alias, such as `dogs@champion`.

    Raises:
        UserError: it does not have more images right, or the p-value is not below `alpha`.
    """
    if pair.difference > 0 and pair.p_value < alpha:
        return
    raise UserError(
        f"Run {short(record.run_id)} was not registered: compared with {target}, run {short(current.run_id)}, it has"
        f" {pair}. It must have more images right, with p below {alpha:g}. Type run=<a better run's id>; the exported"
        " files stay."
    )
