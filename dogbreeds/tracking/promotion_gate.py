"""What a network must pass before an alias points to it.

It must have learned; and where the alias points to another network already, it must beat that one: on the same test photos, one by one, by more than
chance would give. A better number alone is not better: of two equal networks one has the better number.
"""

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import Record, short

# Validation chose the best epoch, so that it is no fair judge
SPLIT = "test"
WORTHY = ("learned", "better_than_frozen", "no_better_than_frozen")


def check_verdict(record: Record, target: str) -> None:
    """Raises `UserError` for an attempt in which something went wrong, even if an epoch before that was good.

    Args:
        record: the attempt.
        target: what it is to be registered as, such as `dogs@champion`.
    """
    verdict = record.tags["verdict"]
    if verdict not in WORTHY:
        allowed = ", ".join(WORTHY[:-1]).replace("_", " ") + f" or {WORTHY[-1].replace('_', ' ')}"
        raise UserError(
            f"Run {short(record.run_id)} was not registered as {target}: its verdict is {verdict.replace('_', ' ')}. It"
            f" must be {allowed}. Type run=<another run's id>, or train one that ends better; the export itself stays."
        )


def beside(
    record: Record, other: Record, mine: dict[str, Predictions], theirs: dict[str, Predictions], target: str
) -> PairedOutcome:
    """An attempt beside the one that the alias points to, photo by photo.

    Args:
        record, other: the two.
        mine, theirs: what they said, by split.
        target: as in `check_verdict`.

    Raises:
        UserError: where they were not measured on the same test photos.
    """
    if SPLIT not in mine or SPLIT not in theirs:
        without = record if SPLIT not in mine else other
        raise _not_comparable(record, other, target, f"run {short(without.run_id)} has none")
    ours, others = mine[SPLIT], theirs[SPLIT]
    known = dict(zip(others.ids, others.labels.tolist(), strict=True))
    if dict(zip(ours.ids, ours.labels.tolist(), strict=True)) != known:
        shared = len(set(ours.ids) & set(others.ids))
        counts = (
            f"they share {shared:,} of {len(ours.ids):,} and {len(others.ids):,}"
            if shared < max(len(ours.ids), len(known))
            else "some are of other breeds"
        )
        raise _not_comparable(record, other, target, counts)
    return ours.beside(others, SPLIT)


def _not_comparable(record: Record, other: Record, target: str, why: str) -> UserError:
    return UserError(
        f"Run {short(record.run_id)} was not registered: {target} is run {short(other.run_id)}, and they have no test"
        f" photos in common to be compared on ({why}). They must have been tested on the same. Train both on the same"
        " data, or type another name, such as register=other."
    )


def check_better(record: Record, other: Record, pair: PairedOutcome, alpha: float, target: str) -> None:
    """Raises `UserError` where an attempt does not beat the one that the alias points to.

    Args:
        record, other: the two.
        pair: the first beside the second.
        alpha: the exact paired test's p must be below.
        target: as in `check_verdict`.
    """
    if pair.difference > 0 and pair.p_value < alpha:
        return
    raise UserError(
        f"Run {short(record.run_id)} was not registered: beside {target}, run {short(other.run_id)}, it has {pair}. It"
        f" must have more photos right, with p below {alpha:g}. Type run=<a better run's id>; the export itself stays."
    )
