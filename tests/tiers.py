"""Which cases of a test run with every change, and which once in a while."""

from collections.abc import Collection, Iterable

import pytest

Case = tuple[object, ...]


def tiered(cases: Iterable[Case], first: Collection[Case] = (), slow: Collection[Case] = ()) -> list:
    """All cases, for `parametrize`: those of the default tier and of the slow one as named, all others in the long one."""
    marks = {**dict.fromkeys(slow, (pytest.mark.slow,)), **dict.fromkeys(first, ())}
    listed = list(cases)
    assert set(marks) <= set(listed)
    return [pytest.param(*case, marks=marks.get(case, (pytest.mark.long,))) for case in listed]
