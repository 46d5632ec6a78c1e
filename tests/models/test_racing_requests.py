"""200 spawns at once, from several processes: nothing is over-claimed, no group is broken.

Everything is judged by plain SQL on what was committed, not by what the requests were told.
"""

import multiprocessing
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper.errors import NoHostFits
from models.session import Database
from tests.models.asking import ask_spawn
from tests.models.rows import add_host

HOSTS = ("hv-a", "hv-b", "hv-c")
PROCESSES, THREADS = 4, 4
APART = {"name": "apart", "policy": "anti_affinity"}
TOGETHER = {"name": "together", "policy": "affinity"}

Report = tuple[str, float]


def list_wishes() -> list[dict[str, Any]]:
    """200 requests: 30 apart, 30 together, 140 alone; more than three hosts of 16 GiB can take."""
    wishes: list[dict[str, Any]] = []
    for number in range(200):
        wish: dict[str, Any] = {"name": f"vm-{number}", "memory_mib": 512 * (1 + number % 3)}
        if number % 20 < 3:
            wish |= {"group": APART, "memory_mib": 512}
        elif number % 20 < 6:
            wish |= {"group": TOGETHER, "memory_mib": 512}
        wishes.append(wish)
    # Members first: later there may be no room that would let a rule be broken.
    return sorted(wishes, key=lambda wish: "group" not in wish)


def ask_all(url: str, wishes: list[dict[str, Any]]) -> list[Report]:
    """Ask for guests side by side; the work of one process."""
    database = Database(url, pool_size=THREADS, application_name="racer")

    def ask_one(wish: dict[str, Any]) -> Report:
        began_s = time.monotonic()
        try:
            ask_spawn(database, **wish)
            told = "placed"
        except NoHostFits:
            told = "refused"
        return told, time.monotonic() - began_s

    with ThreadPoolExecutor(THREADS) as threads:
        reports = list(threads.map(ask_one, wishes))
    database.dispose()
    return reports


def read(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.transaction() as session:
        return [tuple(row) for row in session.execute(text(query))]


@pytest.fixture
def reports(database: Database, fresh_url: str, record_property: Any) -> list[Report]:
    with database.transaction() as session:
        for name in HOSTS:
            add_host(session, name, memory_mib=16 * 1024)
        # No worker beats here, and a busy machine may take its time.
        session.execute(text("UPDATE hosts SET heartbeat_at = now() + interval '1 hour'"))
    wishes = list_wishes()
    shares = [wishes[first::PROCESSES] for first in range(PROCESSES)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as processes:
        parts = processes.map(ask_all, [fresh_url] * PROCESSES, shares)
        reports = [report for part in parts for report in part]
    times_ms = sorted(took_s * 1000 for _, took_s in reports)
    p50, p95 = statistics.median(times_ms), times_ms[int(len(times_ms) * 0.95)]
    record_property("accept_ms", {"p50": round(p50, 1), "p95": round(p95, 1)})
    print(f"accepting under load: p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    return reports


def test_nothing_is_over_claimed_and_no_group_is_broken(
    database: Database, reports: list[Report]
) -> None:
    told = Counter(outcome for outcome, _ in reports)
    assert told.total() == 200
    over_claimed = """
        SELECT h.name FROM hosts h JOIN claims c ON c.host = h.name GROUP BY h.name
        HAVING sum(c.memory_mib) > h.memory_total_mib OR sum(c.vcpus) > h.vcpus_total
            OR sum(c.disk_gib) > 100
    """
    assert read(database, over_claimed) == []
    # One claim for each guest, on its host, by its operation; what was refused left no row.
    unlike = """
        SELECT i.name FROM instances i FULL JOIN claims c ON c.instance_id = i.id
         WHERE i.id IS NULL OR c.id IS NULL OR c.host <> i.host
            OR c.operation_id <> i.operation_id OR c.memory_mib <> i.memory_mib
    """
    assert read(database, unlike) == []
    for table in ("instances", "operations", "claims"):
        assert read(database, f"SELECT count(*) FROM {table}") == [(told["placed"],)]
    # A host that could have taken the smallest refused guest would have had to.
    roomy = """
        SELECT h.name FROM hosts h JOIN claims c ON c.host = h.name GROUP BY h.name
        HAVING h.memory_total_mib - sum(c.memory_mib) >= 1536
    """
    assert told["refused"] > 0
    assert read(database, roomy) == []
    members = (
        "SELECT group_name, host, count(*) FROM instances WHERE group_name = '{}' GROUP BY 1, 2"
    )
    apart = read(database, members.format("apart"))
    # At most one each, and no host was left out without need.
    assert sorted(apart) == [("apart", host, 1) for host in HOSTS]
    ((_, _, together),) = read(database, members.format("together"))
    assert together > 1
