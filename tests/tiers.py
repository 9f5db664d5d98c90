"""Assign the cases of a parametrized test to the test tiers: default, slow and long."""

from collections.abc import Collection, Iterable

import pytest

Case = tuple[object, ...]


def tiered(cases: Iterable[Case], first: Collection[Case] = (), slow: Collection[Case] = ()) -> list:
    """Return all cases for `parametrize`, with the marks of their tiers.

    Args:
        cases: all cases.
        first: cases of the default tier.
        slow: cases of the slow tier; all others are in the long one.
    """
    marks = {**dict.fromkeys(slow, (pytest.mark.slow,)), **dict.fromkeys(first, ())}
    listed = list(cases)
    assert set(marks) <= set(listed)
    return [pytest.param(*case, marks=marks.get(case, (pytest.mark.long,))) for case in listed]
