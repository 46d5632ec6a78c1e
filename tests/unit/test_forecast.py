"""The forecast against the closed formula, and its edges."""

import pytest

from tasks.forecast import MIB, estimate_left_s, forecast

LINK = 100 * MIB


def told(**figures: float) -> object:
    given = {
        "memory_bytes": 1000 * MIB,
        "link_bytes_s": LINK,
        "dirty_bytes_s": 0,
        "max_downtime_ms": 300,
        "deadline_s": 3600,
    }
    return forecast(**{**given, **figures})  # type: ignore[arg-type]


def test_an_idle_guest_takes_one_pass() -> None:
    expected = told()

    assert expected.will_converge
    assert expected.total_s == pytest.approx(10)
    assert expected.downtime_ms == 0
    assert expected.moved_bytes == 1000 * MIB


@pytest.mark.parametrize("dirty_mib_s", [10, 50, 90])
def test_the_rounds_are_a_geometric_series(dirty_mib_s: int) -> None:
    expected = told(dirty_bytes_s=dirty_mib_s * MIB)
    ratio, rounds = dirty_mib_s / 100, expected.rounds

    assert expected.will_converge
    assert expected.total_s == pytest.approx(10 * (1 - ratio**rounds) / (1 - ratio))
    assert expected.downtime_ms == pytest.approx(10_000 * ratio ** (rounds - 1))
    assert expected.downtime_ms <= 300


@pytest.mark.parametrize("dirty_mib_s", [100, 410])
def test_a_guest_that_dirties_faster_than_the_link_never_ends(dirty_mib_s: int) -> None:
    expected = told(dirty_bytes_s=dirty_mib_s * MIB)

    assert not expected.will_converge
    assert f"dirties {dirty_mib_s} MiB/s, the link carries 100 MiB/s" in expected.why


def test_a_pause_long_enough_for_all_of_it_ends_any_guest() -> None:
    expected = told(dirty_bytes_s=900 * MIB, max_downtime_ms=11_000)

    assert expected.will_converge
    assert expected.downtime_ms == pytest.approx(10_000)


def test_disks_go_first() -> None:
    assert told(disk_bytes=500 * MIB).total_s == pytest.approx(15)


def test_one_that_would_end_too_late_is_said_not_to() -> None:
    expected = told(deadline_s=9)

    assert not expected.will_converge
    assert "Will not end within 9 s" in expected.why


def test_nothing_is_estimated_without_a_rate() -> None:
    left = {"remaining_bytes": MIB, "dirty_bytes_s": 0, "max_downtime_ms": 300}

    assert estimate_left_s(link_bytes_s=0, **left) is None
    assert estimate_left_s(link_bytes_s=MIB, **left) == pytest.approx(1)
    assert estimate_left_s(link_bytes_s=MIB, **{**left, "dirty_bytes_s": 2 * MIB}) is None
