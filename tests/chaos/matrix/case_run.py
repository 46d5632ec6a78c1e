"""Runs a case: lead an operation to a point, let a process die there, see what becomes of it."""

import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from uuid import UUID

from innkeeper.errors import InnkeeperError
from tests.chaos.asking import Waiter, ask_plainly, ask_typed, plain_celery
from tests.chaos.checker.ledger_look import connect
from tests.chaos.checker.timeline import tell_operation
from tests.chaos.matrix.case_result import CaseResult, NotHeld
from tests.chaos.matrix.cases import DEATHS, FILES, Case, Plot, Victim
from tests.chaos.matrix.dead_host import let_die, list_roles
from tests.chaos.matrix.routes import LEFT_HELD, Turn
from tests.chaos.matrix.second_control import SecondControl
from tests.chaos.matrix.stock import Cast, Stock
from tests.chaos.matrix.turns import turn
from tests.chaos.matrix.verdict import (
    await_published,
    check_evacuated,
    check_outcome,
    check_repeatable,
    check_scene,
)
from tests.chaos.movement import LOOK_EVERY_S, Movement, Stand, find_stand
from tests.chaos.patience import comes_true
from tests.chaos.scene import look_at
from tests.chaos.stage import LEASE_S, Stage

REACH_S = 30.0
# On its way a whole Linux boots, by emulation.
REACH_AFTER_BOOT_S = 120.0
DEATH_S = 5.0
OUTCOME_S = 60.0
MOVED_S = 20.0
ALONE_RECOVERY_S = LEASE_S + 5.0


class Player:
    """Runs cases on one stage, one after another.

    Args:
        stage: labs, roles, crash points.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._connection = connect(stage.database_url)
        self._stock = Stock(stage, self._connection)
        self._second = SecondControl(stage)
        self._plain = plain_celery(stage.broker_url, stage.lab.env()["INNKEEPER_RESULT_URL"])

    def clear(self) -> None:
        """Delete the guests, for those who use the lab afterwards."""
        self._stock.clear()

    def close(self) -> None:
        """Close the connections."""
        self._second.end()
        self._connection.close()
        self._plain.close()

    def run(self, case: Case) -> CaseResult:
        """Run a case; afterwards the stage is fit for the next, whatever has happened."""
        run = _Run(self, case)
        started = time.monotonic()
        why = ""
        try:
            run.play()
        except NotHeld as exc:
            why = str(exc)
        except InnkeeperError as exc:
            why = f"the case could not be played: {exc.code}: {exc}"
        timeline = run.tell() if why else []
        if why:
            self._repair(run)
        self.stage.crash.clear()
        return CaseResult(
            case=case.id,
            label=case.label,
            moment=case.point.moment,
            plot=case.plot.value,
            held=not why,
            why=why,
            kills=run.kills,
            recovery_ms=run.recovery_ms,
            elapsed_ms=round((time.monotonic() - started) * 1000, 1),
            timeline=timeline,
        )

    def asks_plainly(self, case: Case) -> bool:
        """Tell whether any Celery program waits for this case instead of Innkeeper's client."""
        # Only Innkeeper's client sends a request again that has been lost.
        is_every_third = zlib.crc32(case.id.encode()) % 3 == 0
        return is_every_third and case.point.moment != "accepting"

    def _repair(self, run: "_Run") -> None:
        self.stage.crash.clear()
        self.stage.revive()
        self.stage.lab.heal()
        if run.cast is not None:
            self._stock.forget(run.cast.ask.guest)


class _Run:
    """One case under way."""

    def __init__(self, player: Player, case: Case) -> None:
        self._player = player
        self._stage = player.stage
        self._connection = player._connection
        self._case = case
        self._operation_id: UUID | None = None
        self._waiter: Waiter | None = None
        self._dead: frozenset[str] = frozenset()
        self.cast: Cast | None = None
        self.kills = 0
        self.recovery_ms: float | None = None

    def play(self) -> None:
        """Play the case to its end.

        Raises:
            NotHeld: something was not as promised.
        """
        player, stage, case = self._player, self._stage, self._case
        is_alone = case.plot is Plot.ALONE
        if is_alone:
            player._second.ensure_running()
        else:
            player._second.end()
        self.cast = cast = player._stock.prepare(case)
        before = (
            look_at(stage.lab, self._connection, cast.ask.guest, cast.instance_id)
            if cast.instance_id is not None
            else None
        )
        epoch = self._find_epoch(cast)
        if case.kind in DEATHS:
            self._dead = list_roles(cast.src)
            let_die(stage, self._connection, cast.src, cast.ask.guest)
        with ExitStack() as undo:
            self._arm()
            waiter = self._waiter = self._ask(cast)
            self._operation_id = waiter.operation_id
            self._turn(cast, undo)
            died_at, role, stood = self._await_death()
            undo.close()
        movement = Movement(stage.database_url, waiter.operation_id, stood)
        try:
            if role is not None and not is_alone:
                stage.start(role)
            told = waiter.find_outcome(OUTCOME_S)
            # A whole may have ended before a process of its part has died.
            if stood is None or not stood.is_published:
                self._await_moved(movement, died_at)
        finally:
            movement.stop()
        check_outcome(self._connection, case, waiter.operation_id, told)
        await_published(self._connection, waiter.operation_id)
        stage.revive()
        if case.kind in DEATHS:
            check_evacuated(stage.lab, self._connection, case, cast, waiter.operation_id, epoch)
        elif told is not None and told.effect == "unknown":
            check_repeatable(stage.lab, self._connection, stage.client, cast, timeout_s=OUTCOME_S)
        else:
            check_scene(stage.lab, self._connection, cast, waiter.operation_id, before)
        limit_ms = ALONE_RECOVERY_S * 1000
        if is_alone and self.recovery_ms is not None and self.recovery_ms > limit_ms:
            raise NotHeld(f"it took {self.recovery_ms:.0f} ms to go on, {limit_ms:.0f} are allowed")

    def tell(self) -> list[str]:
        """Return the operation's story."""
        if self._operation_id is None:
            return []
        return tell_operation(self._stage.database_url, self._operation_id)

    def _arm(self) -> None:
        case, crash = self._case, self._stage.crash
        if case.route.hold_at is not None:
            crash.arm_hold(case.route.hold_at)
        if case.route.hold_at != case.point.name:
            arm = crash.arm_kill if case.victim is Victim.SELF else crash.arm_hold
            arm(case.point.name)

    def _ask(self, cast: Cast) -> Waiter:
        if self._player.asks_plainly(self._case):
            return ask_plainly(self._player._plain, cast.ask, timeout_s=OUTCOME_S)
        return ask_typed(self._stage.client, cast.ask, timeout_s=OUTCOME_S)

    def _turn(self, cast: Cast, undo: ExitStack) -> None:
        route, crash = self._case.route, self._stage.crash
        if route.turn is Turn.NONE or route.hold_at is None:
            return
        self._await_reached(route.hold_at, crash.is_held)
        assert self._operation_id is not None
        turn(self._stage, self._case, cast, self._operation_id, undo)
        if route.turn not in LEFT_HELD and route.hold_at != self._case.point.name:
            crash.release(route.hold_at)

    def _await_death(self) -> tuple[float, str | None, Stand | None]:
        """Return when a process died, which role it played, and where the operation stood."""
        case, crash, stage = self._case, self._stage.crash, self._stage
        point = case.point.name
        if case.victim is Victim.SELF and case.route.hold_at != point:
            self._await_reached(point, crash.has_struck)
            died_at = (crash.path / f"{point}.struck").stat().st_mtime
            role = self._find_dead()
            stood = self._find_stand()
        else:
            self._await_reached(point, crash.is_held)
            role = "control" if case.victim is Victim.CONTROL else self._holder()
            died_at = time.time()
            stage.kill(role)
            stood = self._find_stand()
            crash.release(point)
        self.kills += 1
        return died_at, role, stood

    def _await_reached(self, point: str, is_reached: Callable[[str], bool]) -> None:
        assert self._waiter is not None
        boots = self._case.label == FILES
        give_up_at = time.monotonic() + (REACH_AFTER_BOOT_S if boots else REACH_S)
        while not is_reached(point):
            told = self._waiter.find_outcome(LOOK_EVERY_S)
            # Who publishes an outcome may be held a moment after its client was told.
            if time.monotonic() > give_up_at or (
                told and not comes_true(lambda: is_reached(point), DEATH_S, every_s=LOOK_EVERY_S)
            ):
                raise NotHeld(f"not reached: nobody came to {point}; the client was told {told}")

    def _holder(self) -> str:
        """Return the role that passes the case's point."""
        assert self.cast is not None
        on = self._case.point.on
        return {"src": f"worker:{self.cast.src}", "dst": f"worker:{self.cast.dst}"}.get(on, on)

    def _find_dead(self) -> str | None:
        give_up_at = time.monotonic() + DEATH_S
        while True:
            for role in self._stage.lab.status()["roles"]:
                if not role["running"] and role["role"] not in self._dead:
                    return str(role["role"])
            if self._case.plot is Plot.ALONE and not self._player._second.is_running:
                return None
            if time.monotonic() > give_up_at:
                raise NotHeld(f"{self._case.point.name} has struck and every role lives")
            time.sleep(0.005)

    def _find_epoch(self, cast: Cast) -> int:
        row = self._connection.execute(
            "SELECT epoch FROM instances WHERE id = %s", (cast.instance_id,)
        ).fetchone()
        return 0 if row is None else int(row["epoch"])

    def _find_stand(self) -> Stand | None:
        assert self._operation_id is not None
        return find_stand(self._connection, self._operation_id)

    def _await_moved(self, movement: Movement, died_at: float) -> None:
        comes_true(lambda: movement.moved_at is not None, MOVED_S, every_s=0.005)
        if movement.moved_at is None:
            raise NotHeld(f"the operation has not moved on {MOVED_S:g} s after its end")
        self.recovery_ms = round((movement.moved_at - died_at) * 1000, 1)
