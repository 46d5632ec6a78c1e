"""When a migration's link is taken for dead."""

import pytest

from tasks.migration_link import SILENCE_S, LinkWatch
from virt.views import JobStats


class Link:
    """A link whose other end answers or not, and a clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.reason: str | None = "no answer"
        self.connections = 2
        self.probes = 0
        self.watch = LinkWatch(self.probe, self.cut, lambda: self.now_s)

    def probe(self) -> str | None:
        self.probes += 1
        return self.reason

    def cut(self) -> int:
        count, self.connections = self.connections, 0
        return count

    def at(self, now_s: float, moved_bytes: int | None) -> str | None:
        self.now_s = now_s
        if moved_bytes is None:
            return self.watch.see(None)
        stats = JobStats(kind="unbounded", phase="memory", memory_processed_bytes=moved_bytes)
        return self.watch.see(stats)


def test_what_moves_is_not_asked_about() -> None:
    link = Link()
    assert [link.at(second, second) for second in range(1, 60)] == [None] * 59
    assert link.probes == 0


@pytest.mark.parametrize("moved_bytes", [7, None])
def test_silence_and_no_answer_end_the_connections_once(moved_bytes: int | None) -> None:
    link = Link()
    link.at(1, 7)
    assert link.at(SILENCE_S, moved_bytes) is None
    said = link.at(SILENCE_S + 1, moved_bytes)
    assert said is not None
    assert "2 connections" in said
    assert "no answer" in said
    assert link.at(SILENCE_S + 2, moved_bytes) is None
    assert link.at(3 * SILENCE_S, moved_bytes) is None


def test_a_destination_that_answers_is_left_alone() -> None:
    link = Link()
    link.reason = None
    assert [link.at(second, 7) for second in range(1, 60)] == [None] * 59
    assert link.connections == 2
    assert 1 < link.probes < 7


def test_what_moves_again_has_its_time_again() -> None:
    link = Link()
    link.at(1, 7)
    link.at(SILENCE_S, 8)
    assert link.at(SILENCE_S + 2, 8) is None
    assert link.probes == 0
