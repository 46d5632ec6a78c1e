"""What must hold of an operation and its guest after a death in its middle."""

from typing import Any
from uuid import UUID

import psycopg

from innkeeper import Innkeeper
from lab.handle import Lab
from tests.chaos.asking import Outcome, ask_typed
from tests.chaos.matrix.case_result import NotHeld
from tests.chaos.matrix.cases import Case, Plot
from tests.chaos.matrix.dead_host import await_return
from tests.chaos.matrix.routes import Turn
from tests.chaos.matrix.stock import Cast
from tests.chaos.movement import find_stand
from tests.chaos.patience import comes_true
from tests.chaos.scene import Scene, is_gone, is_settled_on, list_files, look_at

# Two sweeps, and the two seconds for which an outcome is its publisher's own affair.
PUBLISHED_S = 8.0
LET_GO_S = 60.0
UNDONE = frozenset({"not_started", "rolled_back"})

_OPERATION = "SELECT state, result, error, instance_id FROM operations WHERE id = %s"
_UNFINISHED = """
    SELECT position, name, state FROM steps
     WHERE operation_id = %s AND state IN ('queued', 'running', 'undo', 'undoing')
"""


_TAKEN = """
    SELECT e.domain_epoch FROM evacuations e JOIN operations o ON o.id = e.operation_id
     WHERE o.parent_id = %s AND e.instance_id = %s AND e.dst_host = %s
"""


def check_outcome(
    connection: psycopg.Connection[dict[str, Any]],
    case: Case,
    operation_id: UUID,
    told: Outcome | None,
) -> None:
    """Check that the operation has ended as it had to, and that its client was told the truth.

    Raises:
        NotHeld: it has not.
    """
    row = connection.execute(_OPERATION, (operation_id,)).fetchone()
    if row is None:
        raise NotHeld("the request never became an operation")
    error = row["error"] or {}
    ending = f"{row['state']} {error.get('code', '')} {error.get('effect', '')}".strip()
    if told is None:
        raise NotHeld(f"the client still waits; the operation is {ending}")
    if row["state"] not in case.expects:
        wanted = " or ".join(sorted(case.expects))
        raise NotHeld(f"it ended {ending}, not {wanted}: {error.get('message')}")
    may_be_unknown = case.route.turn is Turn.OBSTACLE
    if row["state"] != "succeeded" and error.get("effect") not in UNDONE and not may_be_unknown:
        raise NotHeld(f"it ended {ending}")
    truth = Outcome(row["result"], error.get("code"), error.get("effect"))
    if told != truth:
        raise NotHeld(f"the client was told {told}, the truth is {truth}")
    unfinished = connection.execute(_UNFINISHED, (operation_id,)).fetchall()
    if unfinished:
        raise NotHeld(f"it has ended {ending} with unfinished steps: {unfinished}")


def await_published(connection: psycopg.Connection[dict[str, Any]], operation_id: UUID) -> None:
    """Wait until the record says that the outcome is stored.

    Raises:
        NotHeld: it never does.
    """

    def is_published() -> bool:
        stand = find_stand(connection, operation_id)
        return stand is not None and stand.is_published

    if not comes_true(is_published, PUBLISHED_S, every_s=0.01):
        raise NotHeld(f"the outcome is not marked as published after {PUBLISHED_S:g} s")


def check_scene(
    lab: Lab,
    connection: psycopg.Connection[dict[str, Any]],
    cast: Cast,
    operation_id: UUID,
    before: Scene | None,
) -> None:
    """Check that the guest is where the outcome says, and that nothing is left anywhere else.

    Raises:
        NotHeld: it is not.
    """
    row = connection.execute(_OPERATION, (operation_id,)).fetchone()
    assert row is not None
    if left := list_files(lab, str(operation_id)):
        raise NotHeld(f"files of the operation are left: {left}")
    if row["instance_id"] is None:
        return
    scene = look_at(lab, connection, cast.ask.guest, row["instance_id"])
    if row["state"] == "succeeded":
        if not _is_as_asked(scene, cast):
            raise NotHeld(f"it succeeded, and the guest is {scene}")
    elif before is None:
        if not is_gone(scene):
            raise NotHeld(f"it {row['state']}, and there is left {scene}")
    elif scene != before:
        effect = (row["error"] or {}).get("effect")
        raise NotHeld(f"it {row['state']}, effect {effect}, yet {scene.differs(before)}")


def check_evacuated(
    lab: Lab,
    connection: psycopg.Connection[dict[str, Any]],
    case: Case,
    cast: Cast,
    operation_id: UUID,
    epoch: int,
) -> None:
    """Check that the guest is whole on one host: on the new one, if and only if it was taken.

    Args:
        lab: in which the dead host runs again.
        connection: to read the records.
        case: says whether it had to be taken.
        cast: its guest.
        operation_id: the evacuation.
        epoch: the guest's before it.

    Raises:
        NotHeld: it is not.
    """
    assert cast.instance_id is not None
    guest, instance_id = cast.ask.guest, cast.instance_id

    def is_let_go() -> bool:
        return look_at(lab, connection, guest, instance_id).held_by is None

    if not comes_true(is_let_go, LET_GO_S, every_s=0.2):
        raise NotHeld("the evacuation is over and its guest is still held")
    await_return(connection, cast.src)
    scene = look_at(lab, connection, guest, instance_id)
    taken = connection.execute(_TAKEN, (operation_id, instance_id, cast.dst)).fetchone()
    is_plain = case.route.turn is Turn.NONE and case.plot is not Plot.CANCEL
    if taken is None and is_plain:
        raise NotHeld(f"its guest was not taken: {scene}")
    host = cast.src if taken is None else cast.dst
    if (scene.host, scene.claims) != (host, (host,)):
        raise NotHeld(f"the guest should be on {host} alone, and is {scene}")
    if {place for place, _ in scene.domains} != {host}:
        raise NotHeld(f"the guest's domain should be on {host} alone: {scene}")
    if taken is None:
        return
    if taken["domain_epoch"] <= epoch:
        raise NotHeld(f"it was taken with the epoch {taken['domain_epoch']}, and had {epoch}")
    states = {("active", "running")}
    if case.route.turn is Turn.OBSTACLE:
        states.add(("stopped", "shut off"))
    if (scene.state, scene.domains[0][1]) not in states:
        raise NotHeld(f"it was taken, and is {scene}")


def check_repeatable(
    lab: Lab,
    connection: psycopg.Connection[dict[str, Any]],
    client: Innkeeper,
    cast: Cast,
    *,
    timeout_s: float,
) -> None:
    """Check that an operation whose effect nobody can tell can be asked for again.

    Raises:
        NotHeld: it cannot, or it leaves something behind.
    """
    assert cast.instance_id is not None
    told = ask_typed(client, cast.ask, timeout_s=timeout_s).find_outcome(timeout_s)
    if told is None or told.code is not None:
        raise NotHeld(f"asked for once more, it ended {told}")
    scene = look_at(lab, connection, cast.ask.guest, cast.instance_id)
    if not _is_as_asked(scene, cast):
        raise NotHeld(f"asked for once more, it succeeded, and the guest is {scene}")


def _is_as_asked(scene: Scene, cast: Cast) -> bool:
    if cast.ask.kind == "delete":
        return is_gone(scene)
    return is_settled_on(scene, cast.dst, "stopped" if cast.ask.kind == "stop" else "active")
