"""Each fault does what it says, may be repeated, and is mended: on real hypervisors and workers."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError, NotFound
from lab.handle import Lab
from tests.chaos.faults.catalogue import ALL_FAULTS, find_fault, list_faults
from tests.chaos.faults.clock_faults import ClockSkewed
from tests.chaos.faults.fault import MissedError, struck
from tests.chaos.faults.network_faults import FinishReplyLost
from tests.chaos.faults.process_faults import (
    Doubled,
    Frozen,
    Killed,
    QemuKilled,
    two_sweepers,
)
from tests.chaos.faults.service_faults import connect_redis
from tests.chaos.stage import LEASE_S, Stage
from tests.waiting import wait_until

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def stage(bent_stage: Stage) -> Stage:
    return bent_stage


@pytest.fixture(scope="module")
def client(stage: Stage) -> Innkeeper:
    return stage.client


@pytest.fixture
def name(client: Innkeeper) -> Iterator[str]:
    chosen = f"t-{uuid.uuid4().hex[:8]}"
    yield chosen
    with suppress(NotFound):
        client.delete(chosen).wait(60)


def spawn(stage: Stage, name: str, host: str) -> None:
    stage.client.spawn(name=name, host=host, **stage.boot_guest()).wait(60)


def domain_state(lab: Lab, host: str, name: str) -> str:
    return lab.exec(host, ["virsh", "domstate", name], check=False).stdout.strip()


def assert_it_works(client: Innkeeper) -> None:
    """Control answers again; a client may have to ask twice."""

    def answers() -> bool:
        try:
            return bool(client.hosts())
        except InnkeeperError:
            return False

    wait_until(answers, timeout_s=30, what="control answers")


def test_every_fault_has_a_name_of_its_own() -> None:
    names = [fault.name for fault in ALL_FAULTS]
    assert len(set(names)) == len(names)
    assert [fault.name for fault in list_faults(("hv-a", "hv-b"), lease_s=2.0)] == names
    assert find_fault("worker_frozen:hv-b").lasts_s > LEASE_S
    with pytest.raises(KeyError, match="redis_flushed"):
        find_fault("redis_flashed")


def test_redis_is_emptied(stage: Stage, client: Innkeeper) -> None:
    with connect_redis(stage.lab) as redis:
        redis.set("kept", "1")
        fault = find_fault("redis_killed_and_emptied")
        fault.strike(stage)
        fault.strike(stage)
        with pytest.raises(RedisConnectionError):
            redis.ping()
        fault.mend(stage)
        fault.mend(stage)
        assert redis.get("kept") is None
        redis.set("kept", "1")
        born = redis.info("server")["run_id"]
        with struck(find_fault("redis_flushed"), stage):
            assert redis.get("kept") is None
        assert redis.info("server")["run_id"] == born
    assert_it_works(client)


def test_redis_stops_and_refuses(stage: Stage, client: Innkeeper) -> None:
    with connect_redis(stage.lab) as redis:
        redis.set("kept", "1")
        impatient = connect_redis(stage.lab)
        impatient.connection_pool.connection_kwargs["socket_timeout"] = 0.3
        with struck(find_fault("redis_stopped"), stage), pytest.raises(RedisTimeoutError):
            impatient.get("kept")
        impatient.close()
        assert redis.get("kept") == b"1"
        full = find_fault("redis_refuses_writes")
        with struck(full, stage):
            assert redis.get("kept") == b"1"
            with pytest.raises(OutOfMemoryError):
                redis.set("kept", "2")
        full.mend(stage)
        assert redis.set("kept", "2")
    assert_it_works(client)


def test_postgres_goes_and_comes(stage: Stage, client: Innkeeper) -> None:
    engine = create_engine(stage.lab.env()["INNKEEPER_DATABASE_URL"], pool_size=1, max_overflow=0)

    def backend_pid() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    def postmaster_pid() -> int:
        return int(stage.lab.role("postgres")["pid"])

    backend, postmaster = backend_pid(), postmaster_pid()
    with struck(find_fault("postgres_connections_terminated"), stage):
        with pytest.raises(OperationalError, match="terminating connection"):
            backend_pid()
        assert backend_pid() != backend
    assert postmaster_pid() == postmaster
    with struck(find_fault("postgres_restarted"), stage):
        assert postmaster_pid() != postmaster
    killed, postmaster = find_fault("postgres_killed"), postmaster_pid()
    killed.strike(stage)
    with pytest.raises(OperationalError):
        backend_pid()
    with pytest.raises(MissedError):
        find_fault("postgres_connections_terminated").strike(stage)
    killed.mend(stage)
    assert postmaster_pid() != postmaster
    engine.dispose()
    assert_it_works(client)


@pytest.mark.parametrize("role", ["control", "beat", "worker:hv-a", "libvirtd:hv-b"])
def test_a_killed_process_is_replaced(stage: Stage, role: str) -> None:
    fault = find_fault(Killed(role).name)
    first = stage.lab.role(role)["pid"]
    fault.strike(stage)
    fault.strike(stage)
    assert not stage.lab.role(role)["running"]
    fault.mend(stage)
    fault.mend(stage)
    assert stage.lab.role(role)["running"]
    assert stage.lab.role(role)["pid"] != first


@pytest.mark.parametrize("role", ["control", "worker:hv-b"])
def test_a_frozen_process_goes_on(stage: Stage, client: Innkeeper, role: str) -> None:
    fault = find_fault(Frozen(role, 0.0).name)
    assert isinstance(fault, Frozen)
    first = stage.lab.role(role)["pid"]
    fault.strike(stage)
    fault.strike(stage)
    assert fault.is_frozen(stage.lab)
    fault.mend(stage)
    fault.mend(stage)
    assert not fault.is_frozen(stage.lab)
    assert stage.lab.role(role)["pid"] == first
    fault.strike(stage)
    find_fault(Killed(role).name).strike(stage)
    fault.mend(stage)
    assert stage.lab.role(role)["pid"] != first
    assert_it_works(client)


def test_messages_are_bent_and_only_time_is_lost(
    stage: Stage, client: Innkeeper, name: str
) -> None:
    assert stage.redis is not None
    before = stage.redis.counts
    bends = [find_fault(f"messages_{how}") for how in ("doubled", "dropped", "delayed")]
    for fault in bends:
        fault.strike(stage)
    spawn(stage, name, stage.lab.hosts[0])
    client.delete(name).wait(60)
    for fault in bends:
        fault.mend(stage)
    after = stage.redis.counts
    assert after.doubled > before.doubled
    assert after.delayed > before.delayed
    assert after.late + after.lost_parked >= after.delayed
    assert stage.redis.bends == type(stage.redis.bends)()
    with pytest.raises(MissedError):
        bends[0].strike(replace(stage, redis=None))


def test_two_beats_and_two_sweepers(stage: Stage) -> None:
    assert stage.redis is not None
    beats = find_fault("two_beats")
    sweepers = two_sweepers()
    assert isinstance(beats, Doubled)
    log = stage.lab.layout.log("two_sweepers")
    with struck(Killed("beat"), stage), struck(beats, stage), struck(sweepers, stage):
        beats.strike(stage)
        assert len(beats.pids) == 1
        before = stage.redis.counts.seen
        wait_until(
            lambda: log.read_text().count("turned back") >= 2,
            timeout_s=30,
            what="two sweeps",
        )
        # The lab's own beat is dead: these are the second one's.
        assert stage.redis.counts.seen > before
    assert beats.pids == sweepers.pids == ()
    leftovers = subprocess.run(["pgrep", "-f", "workers sweep"], capture_output=True, check=False)
    ours = str(stage.lab.layout.root).encode()
    for pid in leftovers.stdout.split():
        with suppress(OSError), open(f"/proc/{pid.decode()}/environ", "rb") as environ:
            assert ours not in environ.read()


def test_qemu_is_killed(stage: Stage, client: Innkeeper, name: str) -> None:
    host = stage.lab.hosts[0]
    fault = find_fault(f"qemu_killed:{host}")
    spawn(stage, name, host)
    assert domain_state(stage.lab, host, name) == "running"
    with struck(fault, stage):
        wait_until(
            lambda: domain_state(stage.lab, host, name) == "shut off",
            timeout_s=10,
            what="libvirt has noticed",
        )
    with pytest.raises(MissedError):
        QemuKilled(host, "t-nobody").strike(stage)


@pytest.mark.parametrize("skew_s", [2 * 3600, -5 * 3600], ids=["ahead", "behind"])
def test_a_clock_is_wrong(stage: Stage, client: Innkeeper, name: str, skew_s: int) -> None:
    host = stage.lab.hosts[1]
    fault = find_fault(f"clock_skewed:{host}:{skew_s:+d}s")
    assert isinstance(fault, ClockSkewed)
    with struck(fault, stage):
        fault.strike(stage)
        assert fault.is_skewed(stage)
        spawn(stage, name, host)
        assert abs(skew_of_log(stage.lab, host) - skew_s) < 60
        client.delete(name).wait(60)
    assert not fault.is_skewed(stage)
    assert stage.lab.role(f"worker:{host}")["running"]


def skew_of_log(lab: Lab, host: str) -> float:
    """How far ahead the clock is by which a host's worker stamps its log."""
    lines = lab.layout.log(f"worker:{host}").read_text().splitlines()
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            stamp = datetime.fromisoformat(json.loads(line)["timestamp"])
            return (stamp - datetime.now(UTC)).total_seconds()
    raise AssertionError(f"no stamped line: {lines[-3:]}")


def test_the_network_is_cut(stage: Stage) -> None:
    lab = stage.lab
    a, b = lab.hosts[:2]
    description = lab.description

    def reaches(host: str, address: str, port: int) -> bool:
        attempt = f"exec 3<>/dev/tcp/{address}/{port}"
        done = lab.exec(host, ["timeout", "0.5", "bash", "-c", attempt], check=False)
        return done.returncode == 0

    def peer() -> bool:
        return reaches(a, description.host(b).address, 16509)

    def service() -> bool:
        return reaches(a, description.endpoints.address, description.endpoints.redis_port)

    for fault, is_cut, is_open in (
        (find_fault(f"network_cut:{a}:{b}"), peer, service),
        (find_fault(f"network_cut:{a}:services"), service, peer),
    ):
        with struck(fault, stage):
            fault.strike(stage)
            assert not is_cut()
            assert is_open()
        fault.mend(stage)
        assert is_cut()


def test_the_reply_of_finish_needs_a_migration(stage: Stage) -> None:
    """What it does is seen in tests/chaos/surroundings, and how it is survived."""
    a, b = stage.lab.hosts[:2]
    assert find_fault(f"finish_reply_lost:{a}:{b}").lasts_s > 20
    with pytest.raises(MissedError):
        FinishReplyLost(a, b, patience_s=0.1).strike(stage)
    assert stage.lab.status()["cuts"] == []
