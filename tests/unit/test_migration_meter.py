"""What is shown of a running migration."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.forecast import MIB
from tasks.migration_meter import Meter, describe
from virt.views import JobStats, Phase

GIB = 1024 * MIB
_bytes = st.integers(0, 8 * GIB)
_looks = st.lists(
    st.none()
    | st.builds(
        JobStats,
        kind=st.just("unbounded"),
        phase=st.sampled_from(("starting", "disks", "memory", "postcopy")),
        memory_total_bytes=_bytes,
        memory_remaining_bytes=_bytes,
        memory_bytes_s=st.integers(0, GIB),
        memory_dirty_bytes_s=st.integers(0, GIB),
        memory_iteration=st.integers(0, 50),
        disk_total_bytes=_bytes,
        disk_processed_bytes=_bytes,
        disk_remaining_bytes=_bytes,
        disk_bytes_s=st.integers(0, GIB),
        throttle_percent=st.integers(0, 99),
    ),
    max_size=30,
)


@given(_looks)
def test_progress_never_goes_back_and_never_ends_before_the_end(
    looks: list[JobStats | None],
) -> None:
    meter = Meter(GIB)
    readings = [meter.read(look, max_downtime_ms=300) for look in looks]
    fractions = [reading.fraction for reading in readings]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 0.99 for fraction in fractions)
    assert all(reading.text for reading in readings)
    assert all(reading.eta_s is None or reading.eta_s >= 0 for reading in readings)


def running(phase: Phase, **figures: int) -> JobStats:
    return JobStats(kind="unbounded", phase=phase, **figures)


def test_each_phase_has_its_own_line() -> None:
    disks = running(
        "disks",
        disk_total_bytes=100 * MIB,
        disk_processed_bytes=40 * MIB,
        disk_remaining_bytes=60 * MIB,
        disk_bytes_s=10 * MIB,
    )
    memory = running(
        "memory",
        memory_total_bytes=256 * MIB,
        memory_remaining_bytes=60 * MIB,
        memory_bytes_s=6 * MIB,
        memory_dirty_bytes_s=30 * MIB,
        memory_iteration=3,
        throttle_percent=40,
    )
    rest = running("postcopy", memory_remaining_bytes=20 * MIB, memory_bytes_s=10 * MIB)

    assert describe(disks, 12) == "disks: 40 of 100 MiB, 10 MiB/s, about 12 s more"
    assert describe(memory, None) == (
        "memory, pass 3: 60 of 256 MiB left, 6 MiB/s, dirties 30 MiB/s, slowed by 40 %,"
        " will not converge so"
    )
    assert describe(rest, 2) == (
        "post-copy, the guest runs on the destination: 20 MiB to follow, 10 MiB/s, about 2 s more"
    )


def test_the_rest_of_a_post_copy_is_reckoned_without_what_the_guest_writes() -> None:
    rest = running(
        "postcopy",
        memory_total_bytes=256 * MIB,
        memory_remaining_bytes=20 * MIB,
        memory_bytes_s=10 * MIB,
        memory_dirty_bytes_s=50 * MIB,
    )
    left_s = Meter(256 * MIB).read(rest, max_downtime_ms=1).eta_s
    assert left_s is not None
    assert 1.9 < left_s < 2.1
