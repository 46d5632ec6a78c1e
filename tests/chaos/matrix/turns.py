"""Does to an operation what its case's route says, while one of its processes is held."""

import signal
import threading
from contextlib import ExitStack
from uuid import UUID

from innkeeper.errors import InnkeeperError
from tests.chaos.matrix.case_result import NotHeld
from tests.chaos.matrix.cases import DEATHS, Case
from tests.chaos.matrix.routes import Turn
from tests.chaos.matrix.stock import Cast
from tests.chaos.scene import console_path
from tests.chaos.stage import Stage
from tests.chaos.virsh import define_namesake, undefine_namesake

CANCEL_S = 10.0
# A row that the held process has locked lets the cancel in only once that process is dead.
LOCKED_OUT_S = 0.4


def turn(stage: Stage, case: Case, cast: Cast, operation_id: UUID, undo: ExitStack) -> None:
    """Turn an operation.

    Args:
        stage: where it is.
        case: says how.
        cast: its guest.
        operation_id: the operation, one of whose processes is held.
        undo: takes what must be put right once the point is reached.

    Raises:
        NotHeld: it could not be turned.
    """
    match case.route.turn:
        case Turn.CANCEL if case.route.hold_at == case.point.name:
            _cancel(stage, operation_id, timeout_s=LOCKED_OUT_S)
        case Turn.CANCEL:
            # The sweeper would turn it back before the step that is to see the cancel.
            stage.lab.kill("beat", signal.SIGSTOP)
            undo.callback(stage.lab.kill, "beat", signal.SIGCONT)
            if not _cancel(stage, operation_id, timeout_s=CANCEL_S):
                raise NotHeld(f"the cancel was not taken within {CANCEL_S:g} s")
        case Turn.STRAY | Turn.PART:
            _cancel(stage, operation_id, timeout_s=CANCEL_S)
        case Turn.NAMESAKE:
            define_namesake(stage.lab, cast.dst, cast.ask.guest)
            undo.callback(undefine_namesake, stage.lab, cast.dst, cast.ask.guest)
        case Turn.OBSTACLE:
            assert cast.instance_id is not None
            host = cast.dst if case.kind in DEATHS else cast.src
            path = console_path(stage.lab, host, cast.instance_id)
            path.unlink(missing_ok=True)
            path.mkdir()
            undo.callback(path.rmdir)
        case Turn.HIDDEN:
            disk = stage.lab.layout.shared / "instances" / str(cast.instance_id) / "root.qcow2"
            away = disk.rename(disk.with_name("away"))
            undo.callback(away.rename, disk)


def _cancel(stage: Stage, operation_id: UUID, *, timeout_s: float) -> bool:
    taken = threading.Event()

    def ask() -> None:
        try:
            stage.client.operation(operation_id).cancel()
        except InnkeeperError:
            # Nobody answers when control dies with the question in its hand.
            return
        taken.set()

    threading.Thread(target=ask, name="cancel", daemon=True).start()
    return taken.wait(timeout_s)
