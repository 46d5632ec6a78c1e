"""Every change of state is told once and in order, whatever becomes of Redis and of the relay."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from innkeeper import EventView, Innkeeper
from lab import environment
from lab.handle import Lab
from models.queries import record_event
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import quickest, wait_until

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]


class Follower:
    """A thread that follows events from now on."""

    def __init__(self, lab: Lab) -> None:
        env = lab.env()
        self.client = Innkeeper(env["INNKEEPER_BROKER_URL"], env["INNKEEPER_RESULT_URL"])
        self.first = self.client.events(limit=0).newest + 1
        self.seen: list[EventView] = []
        self.seen_at: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for event in self.client.follow_events(self.first - 1):
            self.seen.append(event)
            self.seen_at.append(time.time())

    def has_seen(self, kind: str, name: str) -> bool:
        return any(e.kind == kind and e.instance_name == name for e in self.seen)

    def await_all_of(self, kind: str, name: str) -> list[EventView]:
        """Wait for an event, and check that nothing before it is missing, doubled or misplaced."""
        wait_until(lambda: self.has_seen(kind, name), what=f"{kind} of {name} is seen")
        seen = list(self.seen)
        assert [e.id for e in seen] == list(range(self.first, self.first + len(seen)))
        return [event for event in seen if event.instance_name == name]


@pytest.fixture
def follower(lab: Lab) -> Follower:
    return Follower(lab)


@pytest.fixture
def broker(lab: Lab) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(lab.env()["INNKEEPER_BROKER_URL"]) as client:
        yield client


def told_in_postgres(records: Database, follower: Follower, name: str) -> list[tuple[int, str]]:
    with records.transaction() as session:
        rows = session.execute(
            text(
                "SELECT e.position, e.kind FROM events e JOIN instances i ON i.id = e.instance_id "
                "WHERE i.name = :name AND e.position >= :first ORDER BY e.position"
            ),
            {"name": name, "first": follower.first},
        )
        return [(row.position, row.kind) for row in rows]


def test_a_guests_whole_life_is_told_in_order(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    follower: Follower,
    name: str,
    boot_guest: dict[str, Any],
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, **boot_guest).wait(120)
    moved = client.migrate(name, dst=b).wait(120)
    client.stop(name, force=True).wait(120)
    client.delete(name).wait(120)
    events = follower.await_all_of("instance.deleted", name)
    states = [(e.kind, e.host) for e in events if e.kind.startswith("instance.")]
    without_power = [each for each in states if not each[0].startswith("instance.power")]
    assert [kind for kind, _ in without_power] == [
        *("instance.building", "instance.active"),
        *("instance.moved", "instance.stopped", "instance.deleted"),
    ]
    assert without_power[1:4] == [
        ("instance.active", a),
        ("instance.moved", b),
        ("instance.stopped", b),
    ]
    wait_until(
        lambda: sum(e.kind == "operation.succeeded" for e in follower.seen) >= 4,
        what="the end of the last operation is told",
    )
    events = [event for event in follower.seen if event.instance_name == name]
    ends = [(e.kind, e.data["kind"]) for e in events if e.kind == "operation.succeeded"]
    assert ends == [
        ("operation.succeeded", kind) for kind in ("spawn", "live_migrate", "stop", "delete")
    ]
    phases = [e for e in events if e.kind.startswith("migration.")]
    assert [e.kind for e in phases][:2] == ["migration.accepted", "migration.preparing"]
    assert phases[-1].data["downtime_ms"] == moved["downtime_ms"]
    for operation in {e.operation for e in events if e.operation is not None}:
        steps = [e for e in events if e.operation == operation and e.kind.startswith("step.")]
        done = [e.data["position"] for e in steps if e.kind == "step.done"]
        assert done == sorted(set(done))
        assert {e.data["position"] for e in steps if e.kind == "step.started"} == set(done)
    assert [(e.id, e.kind) for e in events] == told_in_postgres(records, follower, name)


def test_news_come_within_a_second(client: Innkeeper, lab: Lab, follower: Follower) -> None:
    """Nothing is under way, so only the bell can have woken the relay."""

    def disable_and_see() -> float:
        known = len(follower.seen)
        client.disable_host(lab.hosts[0], f"test {time.monotonic_ns()}")
        began = time.monotonic()
        wait_until(
            lambda: any(e.kind == "host.disabled" for e in follower.seen[known:]),
            what="the host's state is told",
        )
        return time.monotonic() - began

    try:
        assert quickest(disable_and_see, limit_s=1) < 1
    finally:
        client.enable_host(lab.hosts[0])


def test_redis_is_emptied_and_killed_in_the_middle(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    broker: redis.Redis,
    follower: Follower,
    name: str,
    boot_guest: dict[str, Any],
) -> None:
    client.spawn(name=name, **boot_guest).wait(120)
    broker.flushall()
    stopping = client.stop(name, force=True)
    wait_until(lambda: follower.has_seen("instance.stopped", name), what="the stop is told")
    stopping.wait(120)
    lab.kill("redis")
    # Told to nobody for now.
    with records.transaction() as session:
        session.execute(
            text("UPDATE instances SET power_state = 'crashed' WHERE name = :n"), {"n": name}
        )
        session.execute(
            text("UPDATE instances SET power_state = 'shutdown' WHERE name = :n"), {"n": name}
        )
    lab.start("redis")
    client.delete(name).wait(120)
    events = follower.await_all_of("instance.deleted", name)
    assert any(e.data.get("to") == "crashed" for e in events)
    seen = [(e.id, e.kind) for e in events]
    assert seen == told_in_postgres(records, follower, name)[: len(seen)]


def test_the_relay_dies_with_events_that_redis_has_and_the_record_does_not(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    broker: redis.Redis,
    crash: CrashDirectory,
    follower: Follower,
    name: str,
    boot_guest: dict[str, Any],
) -> None:
    for point in ("events:relayed", "events:relaying"):
        crash.arm_kill(point)
        with records.transaction() as session:
            record_event(session, "test.written", data={"point": point})
        assert crash.wait_struck(point)
        wait_until(lambda: not lab.role("control")["running"], what="control is dead")
        lab.start("control")
    client.spawn(name=name, **boot_guest).wait(120)
    follower.await_all_of("instance.active", name)
    ids = [int(key.decode().partition("-")[0]) for key, _ in broker.xrange("innkeeper:events")]
    # It may lack what an earlier test's Redis has lost; that is what the follower looks for.
    assert ids == sorted(set(ids)), "the stream itself has no double, and keeps the order"


@pytest.fixture
def second_control(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """Another control worker, beside the lab's own."""
    env = environment.for_process(lab.description, lab.layout, "second")
    ready = Path(env["INNKEEPER_READY_FILE"])
    ready.unlink(missing_ok=True)
    # Outside the lab's namespaces, /run is the machine's own, and other labs' too.
    env["INNKEEPER_LOCK_DIR"] = str(lab.layout.root / "run" / "second" / "locks")
    # It must not outlive the tests, however those end.
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable]
    command += ["-m", "workers", "control", "--name", "second"]
    with (
        lab.layout.log("control-second").open("ab") as log,
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log) as process,
    ):
        try:
            wait_until(ready.exists, what="the second control worker is ready")
            yield process
        finally:
            process.kill()


def relay_owner(records: Database) -> str:
    with records.transaction() as session:
        return str(session.execute(text("SELECT owner FROM event_relay")).scalar_one())


def test_another_control_worker_relays_when_one_is_gone(
    lab: Lab,
    records: Database,
    broker: redis.Redis,
    follower: Follower,
    second_control: subprocess.Popen[bytes],
) -> None:
    assert not relay_owner(records).startswith("control-second")

    def write(word: str) -> None:
        with records.transaction() as session:
            record_event(session, f"test.{word}")

    def is_seen(word: str) -> bool:
        return any(event.kind == f"test.{word}" for event in follower.seen)

    write("by_the_first")
    wait_until(lambda: is_seen("by_the_first"), what="the first one relays")
    lab.kill("control")
    write("by_the_second")
    wait_until(lambda: is_seen("by_the_second"), what="the second one relays")
    assert relay_owner(records).startswith("control-second")
    lab.start("control")
    write("by_the_second_still")
    wait_until(lambda: is_seen("by_the_second_still"), what="one of two relays")
    # Stopped in order, it lets go at once.
    second_control.terminate()
    write("by_the_first_again")
    wait_until(lambda: is_seen("by_the_first_again"), what="the first one relays again")
    ids = [event.id for event in follower.seen]
    assert ids == list(range(follower.first, follower.first + len(ids)))
    keys = [int(key.decode().partition("-")[0]) for key, _ in broker.xrange("innkeeper:events")]
    assert keys == sorted(set(keys))


def test_a_host_that_falls_silent_is_told(
    client: Innkeeper, lab: Lab, records: Database, follower: Follower
) -> None:
    host = lab.hosts[0]
    lab.kill(f"worker:{host}")
    with records.transaction() as session:
        session.execute(
            text("UPDATE hosts SET heartbeat_at = now() - interval '1 minute' WHERE name = :h"),
            {"h": host},
        )
    wait_until(
        lambda: any(e.kind == "host.down" and e.host == host for e in follower.seen),
        what="the silent host is told",
    )
    lab.start(f"worker:{host}")
    wait_until(
        lambda: any(e.kind == "host.up" and e.host == host for e in follower.seen),
        what="its return is told",
    )


def test_the_example_goes_on_where_it_was(
    client: Innkeeper, lab: Lab, tmp_path: Path, name: str, boot_guest: dict[str, Any]
) -> None:
    place = tmp_path / "last"
    place.write_text(str(client.events(limit=0).newest))
    client.spawn(name=name, **boot_guest).wait(120)

    def consume_until(word: str) -> list[str]:
        with subprocess.Popen(
            [sys.executable, ROOT / "docs/examples/consume_events.py", place],
            stdout=subprocess.PIPE,
            env={**os.environ, **lab.env()},
            text=True,
        ) as process:
            assert process.stdout is not None
            lines: list[str] = []
            # The consumer of an event that never comes is ended by the test's own time-out.
            for line in process.stdout:
                lines.append(line.strip())
                if f" {name} {word} " in line:
                    break
            process.kill()
        return [line for line in lines if f" {name} " in line]

    first = consume_until("instance.active")
    client.stop(name, force=True).wait(120)
    second = consume_until("instance.stopped")
    ids = [int(line.split()[0]) for line in (*first, *second)]
    # It was killed, perhaps before it wrote down the last one: that one may come twice.
    assert ids == sorted(ids)
    assert len(ids) - len(set(ids)) <= 1
    assert not any(" instance.building " in line for line in second)


def test_the_command_line_shows_and_follows(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    began = client.events(limit=0).newest
    client.spawn(name=name, **boot_guest).wait(120)
    env = {**os.environ, **lab.env()}
    innkeeper = str(ROOT / ".venv/bin/innkeeper")
    wait_until(
        lambda: (
            "instance.active"
            in subprocess.run(
                [innkeeper, "events", "--instance", name], env=env, capture_output=True, text=True
            ).stdout
        ),
        what="the command shows the events",
    )
    command = [innkeeper, "events", "--follow", "--json", "--after", str(began)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None
        events: list[EventView] = []
        for line in process.stdout:
            events.append(EventView.model_validate_json(line))
            if events[-1].kind == "instance.active":
                break
        process.kill()
    assert [e.id for e in events] == list(range(began + 1, began + 1 + len(events)))
