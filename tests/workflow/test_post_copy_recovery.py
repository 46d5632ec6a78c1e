"""A post-copy whose connection breaks: a new one carries the rest, or the old one comes back."""

import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from innkeeper import Innkeeper
from innkeeper.operation import Operation
from innkeeper.types import StepView
from lab.handle import Lab
from tests.chaos.virsh import virsh
from tests.crash_directory import CrashDirectory
from tests.memory_guest import build_memory_guest
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on, remove
from tests.workflow.test_steering import place_of, wait_for_phase

pytestmark = pytest.mark.lab

SLOW_MIB_S = 1
NAME = "t-memory"
FEW_BEATS = 8
FOLLOWED = "the rest of the memory has followed on"


@pytest.fixture(scope="module")
def filled(client: Innkeeper, lab: Lab) -> Iterator[str]:
    """A guest with a memory that takes its time; it moves with every test."""
    image = Path(lab.description.images.directory) / f"memory-{uuid.uuid4().hex[:8]}.qcow2"
    guest = build_memory_guest(image, filled_mib=64)
    try:
        client.spawn(
            name=NAME,
            host=lab.hosts[0],
            pool="shared",
            migration={"auto_converge": False, "post_copy": True},
            **guest,
        ).wait(120)
        yield NAME
        lab.heal()
        remove(client, NAME)
    finally:
        image.unlink()


def begin_post_copy(client: Innkeeper, lab: Lab, dst: str, **policy: bool) -> Operation:
    """Start a post-copy, and return when the guest has found its own pages on the destination."""
    operation = client.migrate(NAME, dst=dst, bandwidth_mib_s=SLOW_MIB_S, **policy)
    wait_for_phase(operation, "memory")
    before = beats(client, lab, dst)
    client.migrate_force_complete(NAME)
    wait_for_phase(operation, "post_copy")
    wait_until(
        lambda: beats(client, lab, dst) >= before + FEW_BEATS,
        what="the guest runs on the destination",
    )
    return operation


def beats(client: Innkeeper, lab: Lab, host: str) -> int:
    """How far the guest has come on a host."""
    log = f"/var/lib/innkeeper/consoles/{client.instance(NAME).id}.log"
    return len(lab.exec(host, ["cat", log], check=False).stdout)


def end_connection(lab: Lab, host: str, peer: str, *, port: str = "dport") -> None:
    """End the memory's TCP connection on one host, whose kernel tells the other; QEMU sees it."""
    address = lab.description.host(peer).address
    ports = [port, ">=", ":49152", "and", port, "<=", ":49215"]
    ended = lab.exec(host, ["ss", "--kill", "-tnH", "dst", address, "and", *ports]).stdout
    assert len(ended.splitlines()) == 1, ended


def pauses_on(lab: Lab, host: str) -> int:
    """How often a QEMU of the guest's has said here that it waits to be recovered."""
    log = lab.exec(host, ["cat", f"/var/log/libvirt/qemu/{NAME}.log"], check=False).stdout
    return log.count("IO failure for postcopy. Migration paused")


def cap_of(lab: Lab, host: str) -> int:
    """QEMU's cap of the post-copy, in bytes/s."""
    query = '{"execute": "query-migrate-parameters"}'
    answer = json.loads(virsh(lab, host, "qemu-monitor-command", NAME, query))
    return int(answer["return"]["max-postcopy-bandwidth"])


def step_of(operation: Operation) -> StepView:
    return next(step for step in operation.view().steps if step.name == "migrate")


def wait_for_progress(operation: Operation) -> None:
    """Wait until the operation shows that more of the memory has followed."""
    shown: list[int] = []

    def is_less() -> bool:
        figure = operation.view().progress.figures.get("memory_remaining_bytes")
        if figure is not None:
            shown.append(figure)
        return bool(shown) and shown[-1] < shown[0]

    wait_until(is_less, what="progress is shown")


def notes_of(operation: Operation) -> list[str]:
    return [entry["text"] for entry in step_of(operation).log]


def wait_for_reason(lab: Lab, host: str, state: str) -> None:
    wait_until(
        lambda: virsh(lab, host, "domstate", NAME, "--reason").strip() == state,
        what=f"the guest is {state} on {host}",
    )


def assert_moved(client: Innkeeper, lab: Lab, operation: Operation, src: str, dst: str) -> None:
    on_source = beats(client, lab, src)
    assert operation.wait(180)["host"] == dst
    view = client.instance(NAME)
    assert (view.host, view.state, view.operation_id) == (dst, "active", None)
    assert domains_on(lab, dst)[NAME] == "running"
    wait_until(lambda: NAME not in domains_on(lab, src), what="the source is clean")
    assert beats(client, lab, src) in (0, on_source)
    arrived = beats(client, lab, dst)
    wait_until(lambda: beats(client, lab, dst) > arrived, what="the guest runs on")


def test_the_resumed_job_carries_the_rest_under_the_cap_that_is_asked_for(
    client: Innkeeper, lab: Lab, filled: str
) -> None:
    here, there = place_of(client, lab, filled)
    operation = begin_post_copy(client, lab, there)
    stood_still_at = beats(client, lab, here)
    end_connection(lab, here, there)
    wait_until(lambda: step_of(operation).attempt == 2, what="the next attempt")
    wait_for_reason(lab, here, "paused (post-copy)")
    assert (pauses_on(lab, here), pauses_on(lab, there)) == (1, 1)
    assert cap_of(lab, here) == SLOW_MIB_S << 20
    wait_for_progress(operation)
    assert beats(client, lab, here) == stood_still_at

    client.migrate_set(filled, bandwidth_mib_s=0)

    assert_moved(client, lab, operation, here, there)
    assert f"{FOLLOWED} a new connection" in notes_of(operation)


def test_a_worker_that_dies_before_and_while_it_takes_the_post_copy_up(
    client: Innkeeper, lab: Lab, filled: str, crash: CrashDirectory
) -> None:
    here, there = place_of(client, lab, filled)
    before = pauses_on(lab, there)
    operation = begin_post_copy(client, lab, there, tls=True)
    for moment in ("acting", "inside"):
        crash.arm_kill(f"live_migrate.migrate:{moment}")
    # As when TCP gives up on either side, which takes a quarter of an hour.
    lab.cut(here, there)
    end_connection(lab, here, there)
    end_connection(lab, there, here, port="sport")
    wait_for_reason(lab, there, "running (post-copy failed)")
    lab.heal(here, there)
    for moment in ("acting", "inside"):
        assert crash.wait_struck(f"live_migrate.migrate:{moment}")
        wait_until(lambda: not lab.role(f"worker:{here}")["running"], what="it is seen to be dead")
        lab.start(f"worker:{here}")
    wait_for_reason(lab, here, "paused (post-copy)")
    wait_until(lambda: step_of(operation).attempt == 4, what="the resumed job is adopted")
    client.migrate_set(filled, bandwidth_mib_s=0)

    assert_moved(client, lab, operation, here, there)
    assert pauses_on(lab, there) == before + 1


def test_a_cut_link_is_waited_for_and_the_old_connection_is_followed_when_it_comes_back(
    client: Innkeeper, lab: Lab, filled: str
) -> None:
    here, there = place_of(client, lab, filled)
    before = pauses_on(lab, here)
    operation = begin_post_copy(client, lab, there)
    lab.cut(here, there)
    wait_until(
        lambda: "interrupted" in (step_of(operation).waiting_for or ""), what="the break is seen"
    )
    assert not operation.view().state.is_final
    wait_for_reason(lab, here, "paused (post-copy failed)")
    lab.heal(here, there)
    wait_for_progress(operation)
    assert pauses_on(lab, here) == before
    client.migrate_set(filled, bandwidth_mib_s=0)

    assert_moved(client, lab, operation, here, there)
    assert f"{FOLLOWED} the old connection, which came back" in notes_of(operation)


def test_a_destination_that_does_not_answer_is_not_waited_for_inside_libvirt(
    client: Innkeeper, lab: Lab, filled: str
) -> None:
    here, there = place_of(client, lab, filled)
    operation = begin_post_copy(client, lab, there)
    lab.kill(f"qemu:{there}:{filled}", signal.SIGSTOP)
    try:
        end_connection(lab, here, there)
        wait_until(
            lambda: "does not answer" in (step_of(operation).waiting_for or ""),
            timeout_s=180,
            what="the wait inside libvirt ends",
        )
    finally:
        lab.kill(f"qemu:{there}:{filled}", signal.SIGCONT)
    wait_for_reason(lab, here, "paused (post-copy)")
    client.migrate_set(filled, bandwidth_mib_s=0)

    assert_moved(client, lab, operation, here, there)
