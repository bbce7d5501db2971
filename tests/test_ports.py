"""Ports as people write them: right ones are equal, faulty ones different, and the fault is found."""

import pytest

from tests.ports import CASES, RIGHT
from tests.ports.__main__ import compare, count, judge

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_right_port_is_equal(case):
    result = compare(case, "")
    assert result.equal, str(result)


def test_faults_are_found():
    judged = {case: judge(case) for case in CASES}
    print(count(list(judged.values())))
    missed = [str(case) for case, found in judged.items() if not found.different]
    assert not missed
    wrong = [f"{case}: {found.result.first.cause}" for case, found in judged.items() if found.wrong_cause]
    assert not wrong
    places = [str(case) for case, found in judged.items() if not found.place]
    assert len(places) <= 0.1 * len(CASES), places
    causes = [str(case) for case, found in judged.items() if not found.cause]
    assert len(causes) <= 0.3 * len(CASES), causes
