"""The stream of requests: one thread per guest plays the guest's acts and notes every answer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg

from innkeeper import Innkeeper
from tests.chaos.fire.acts import Act, GuestPlan, draw_acts, repair_for
from tests.chaos.fire.callers import NOT_SENT, Asked, Caller, PlainCaller, TypedCaller, cancel
from tests.chaos.fire.journal import Journal
from tests.chaos.fire.records import Records
from tests.chaos.patience import comes_true
from tests.chaos.stage import Stage

# An operation's own deadline and half a minute; of a spawn less, nothing here takes so long.
WAIT_S = {"spawn": 240.0, "live_migrate": 270.0}
VERB_WAIT_S = 155.0
MOST_REPAIRS = 3
LOST_AFTER_S = 20.0
AFTER_REFUSAL_S = 1.0


class Traffic:
    """All guests' threads, and everything that was asked.

    Args:
        stage: whose Innkeeper is asked.
        guests: whose acts are played.
        seed: of the acts.
        journal: is told of every request's end.
    """

    def __init__(self, stage: Stage, guests: list[GuestPlan], seed: str, journal: Journal) -> None:
        self._journal = journal
        self._flows = threading.Event()
        self._ends = threading.Event()
        self._asked: list[Asked] = []
        self._guard = threading.Lock()
        self._players = [_Player(self, stage, guest, seed) for guest in guests]

    @property
    def asked(self) -> list[Asked]:
        """Everything that was asked so far."""
        with self._guard:
            return list(self._asked)

    def start(self) -> None:
        """Begin."""
        self._flows.set()
        for player in self._players:
            player.thread.start()

    def flow(self) -> None:
        """Go on after `pause`."""
        self._flows.set()

    def pause(self) -> None:
        """Begin no further act."""
        self._flows.clear()

    def wait_idle(self, timeout_s: float) -> list[str]:
        """Wait until every act that was begun has ended.

        Returns:
            The guests whose act has not ended in time.
        """

        def list_busy() -> list[str]:
            return [player.guest.name for player in self._players if player.is_acting]

        return [] if comes_true(lambda: not list_busy(), timeout_s) else list_busy()

    def end(self, timeout_s: float = 10.0) -> None:
        """Let the threads end after their acts."""
        self._ends.set()
        self._flows.set()
        give_up_at = time.monotonic() + timeout_s
        for player in self._players:
            player.thread.join(max(0.0, give_up_at - time.monotonic()))

    def note(self, asked: Asked) -> None:
        """Remember a request."""
        with self._guard:
            self._asked.append(asked)

    def say(self, text: str) -> None:
        """Tell the journal."""
        self._journal.say(text)

    def wait_for_flow(self) -> bool:
        """Wait until acts may begin; False when none will any more."""
        self._flows.wait()
        return not self._ends.is_set()

    @property
    def flows(self) -> bool:
        """Whether acts may begin now."""
        return self._flows.is_set() and not self._ends.is_set()


class _Player:
    """Plays one guest's acts."""

    def __init__(self, traffic: Traffic, stage: Stage, guest: GuestPlan, seed: str) -> None:
        self.guest = guest
        self.is_acting = False
        self.thread = threading.Thread(target=self._play, name=guest.name, daemon=True)
        self._traffic = traffic
        self._acts = draw_acts(seed, guest)
        self._seed = seed
        self._keys = _number()
        self._records = Records(stage.database_url)
        result_url = stage.lab.env()["INNKEEPER_RESULT_URL"]
        self._client = Innkeeper(stage.broker_url, result_url, requested_by=guest.name)
        self._rival = Innkeeper(stage.broker_url, result_url, requested_by="rival")
        self._caller: Caller = (
            PlainCaller(stage.broker_url, result_url)
            if guest.is_plain
            else TypedCaller(self._client)
        )
        self._image = stage.linux_guest() if guest.is_linux else stage.boot_guest()

    def _play(self) -> None:
        with ExitStack() as stack:
            for closing in (self._client, self._rival, self._records):
                stack.enter_context(closing)
            while self._traffic.wait_for_flow():
                self.is_acting = True
                try:
                    # Looked at again: a pause may have begun before this thread counted as acting.
                    if self._traffic.flows:
                        self._act(next(self._acts))
                except Exception as exc:
                    self._traffic.say(f"DEFECT of the traffic: {self.guest.name}: {exc!r}")
                    raise
                finally:
                    self.is_acting = False

    def _act(self, act: Act) -> None:
        time.sleep(act.pause_s)
        for _ in range(MOST_REPAIRS):
            repair = repair_for(self._condition(), act.needs)
            if repair is None:
                break
            self._ask(repair)
        self._ask(act)

    def _condition(self) -> str:
        guest = self._records.find_guest(self.guest.name)
        return "absent" if guest is None else str(guest["state"])

    def _ask(self, act: Act) -> None:
        key = f"{self._seed} {self.guest.name} {next(self._keys)}" if act.is_doubled else None
        sent = [self._send(act, key) for _ in range(2 if act.is_doubled else 1)]
        others: list[threading.Thread] = []
        if act.cancel_after_s is not None:
            others.append(self._later(act.cancel_after_s, lambda: self._cancel(sent[0])))
        if act.rival is not None:
            rival = act.rival
            others.append(self._later(act.rival_after_s, lambda: self._play_rival(rival)))
        for asked in sent:
            self._wait(self._caller, asked)
        if any(asked.answer is not None and asked.answer.code == NOT_SENT for asked in sent):
            time.sleep(AFTER_REFUSAL_S)
        for other in others:
            other.join()

    def _send(self, act: Act, key: str | None) -> Asked:
        fields = dict(act.fields)
        if act.verb == "spawn":
            fields |= self._image | {"pool": self.guest.pool}
        asked = self._caller.send(act.verb, self.guest.name, fields, key)
        self._traffic.note(asked)
        return asked

    def _wait(self, caller: Caller, asked: Asked) -> None:
        if asked.answer is None:
            caller.wait(asked, WAIT_S.get(asked.verb, VERB_WAIT_S), self._is_hopeless)
        self._traffic.say(f"asked {asked} {asked.message}")

    def _is_hopeless(self, asked: Asked) -> bool:
        """Tell whether a plain caller waits in vain: what it sent or should get was in Redis."""
        try:
            return self._is_lost(asked)
        except psycopg.OperationalError:
            # Postgres is being struck: nobody can tell now.
            return False

    def _is_lost(self, asked: Asked) -> bool:
        row = self._records.find_operation(asked.task_id)
        if row is None:
            return time.time() - asked.sent_at > LOST_AFTER_S
        if row.is_live:
            return False
        told = self._records.rows(
            "SELECT outcome_published_at < clock_timestamp() - interval '10 s' AS long_ago "
            "FROM operations WHERE id = %(id)s",
            {"id": row.id},
        )
        return bool(told and told[0]["long_ago"])

    def _later(self, after_s: float, deed: Callable[[], Any]) -> threading.Thread:
        def wait_and_do() -> None:
            time.sleep(after_s)
            deed()

        thread = threading.Thread(target=wait_and_do, name=f"{self.guest.name}+", daemon=True)
        thread.start()
        return thread

    def _cancel(self, asked: Asked) -> None:
        came = cancel(self._rival, asked)
        self._traffic.say(f"cancelled {asked.verb} {asked.guest} {asked.task_id}: {came}")

    def _play_rival(self, verb: str) -> None:
        caller = TypedCaller(self._rival)
        fields: dict[str, Any] = {"force": True} if verb == "stop" else {}
        if verb == "reboot":
            fields = {"kind": "hard"}
        asked = caller.send(verb, self.guest.name, fields, None)
        asked.is_rival = True
        self._traffic.note(asked)
        self._wait(caller, asked)


def _number() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number
