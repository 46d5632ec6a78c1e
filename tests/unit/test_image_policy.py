"""Which cached images go, by table."""

import pytest

from tasks.image_policy import CacheLimits, Candidate, choose_evictions

MIB = 1 << 20
DAY_S = 86_400.0
OLD = Candidate("old", 100 * MIB, 10 * DAY_S, is_held=False)
MIDDLE = Candidate("middle", 100 * MIB, 5 * DAY_S, is_held=False)
YOUNG = Candidate("young", 100 * MIB, 60.0, is_held=False)
HELD = Candidate("held", 100 * MIB, 20 * DAY_S, is_held=True)
ALL = [YOUNG, HELD, OLD, MIDDLE]


@pytest.mark.parametrize(
    ("limits", "free_mib", "goes"),
    [
        (CacheLimits(), 0, []),
        (CacheLimits(max_age_s=30 * DAY_S), 0, []),
        (CacheLimits(max_age_s=7 * DAY_S), 0, ["old"]),
        (CacheLimits(max_age_s=10 * DAY_S), 0, ["old"]),
        (CacheLimits(max_age_s=1), 0, ["old", "middle"]),
        (CacheLimits(max_age_s=1, min_age_s=0), 0, ["old", "middle", "young"]),
        (CacheLimits(max_bytes=400 * MIB), 0, []),
        (CacheLimits(max_bytes=399 * MIB), 0, ["old"]),
        (CacheLimits(max_bytes=200 * MIB), 0, ["old", "middle"]),
        (CacheLimits(max_bytes=1), 0, ["old", "middle"]),
        (CacheLimits(max_bytes=1, min_age_s=0), 0, ["old", "middle", "young"]),
        (CacheLimits(max_bytes=1, min_age_s=6 * DAY_S), 0, ["old"]),
        (CacheLimits(min_free_bytes=500 * MIB), 500, []),
        (CacheLimits(min_free_bytes=500 * MIB), 499, ["old"]),
        (CacheLimits(min_free_bytes=500 * MIB), 350, ["old", "middle"]),
        (CacheLimits(max_age_s=7 * DAY_S, max_bytes=300 * MIB), 0, ["old"]),
        (CacheLimits(max_age_s=7 * DAY_S, min_free_bytes=100 * MIB), 50, ["old"]),
    ],
)
def test_what_goes(limits: CacheLimits, free_mib: int, goes: list[str]) -> None:
    evictions = choose_evictions(ALL, limits, free_bytes=free_mib * MIB)
    assert [eviction.sha256 for eviction in evictions] == goes
    assert all(eviction.why for eviction in evictions)


def test_nothing_that_is_held_goes_whatever_the_need() -> None:
    limits = CacheLimits(max_bytes=1, min_free_bytes=2**63, min_age_s=0, max_age_s=1)
    assert choose_evictions([HELD], limits, free_bytes=0) == []


def test_the_reason_says_both_figures() -> None:
    quota = choose_evictions([OLD], CacheLimits(max_bytes=50 * MIB), free_bytes=0)
    room = choose_evictions([OLD], CacheLimits(min_free_bytes=50 * MIB), free_bytes=7 * MIB)
    assert quota[0].why == "the cache takes 100 MiB, its quota is 50 MiB"
    assert room[0].why == "the disk has 7 MiB free, 50 MiB are to be left"
