"""`make chaos`: rounds follow from their seed, and cover every fault and its moments."""

from collections import Counter

from tools.chaos.faults import FAULTS
from tools.chaos.rounds import plans

NAMES = list(FAULTS)


def test_the_same_seed_gives_the_same_rounds() -> None:
    assert plans(100, 7, NAMES) == plans(100, 7, NAMES)
    assert plans(100, 7, NAMES) != plans(100, 8, NAMES)


def test_every_fault_happens_as_often_as_every_other() -> None:
    counts = Counter(plan.fault for plan in plans(100, 0, NAMES))
    assert counts.keys() == set(NAMES)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_fault_happens_at_each_of_its_moments() -> None:
    drawn = plans(3 * len(NAMES), 0, NAMES)
    for name, fault in FAULTS.items():
        assert {plan.moment for plan in drawn if plan.fault == name} == set(fault.moments)


def test_fewer_rounds_are_the_first_of_more() -> None:
    assert plans(8, 3, NAMES) == plans(20, 3, NAMES)[:8]
