"""Ports as people write them: right ones are equal, faulty ones different, and the fault is found."""

import pytest

from tests.ports import CASES, RIGHT
from tests.ports.__main__ import compare, count, judge

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_right_port_is_equal(case):
    result = compare(case, "")
    assert result.equal, str(result)


@pytest.fixture(scope="module")
def judged():
    found = {case: judge(case) for case in CASES}
    print(count(list(found.values())))
    return found


def test_faults_are_found_in_their_places(judged):
    assert not [str(case) for case, found in judged.items() if not found.different]
    places = [str(case) for case, found in judged.items() if not found.place]
    assert len(places) <= 0.1 * len(CASES), places


def test_causes_are_right(judged):
    wrong = [f"{case}: {found.result.first.cause}" for case, found in judged.items() if found.wrong_cause]
    assert not wrong
    causes = [str(case) for case, found in judged.items() if not found.cause]
    assert len(causes) <= 0.3 * len(CASES), causes
