"""How much slow work is taken on at once; asked in the transaction of a step's claim.

Who is not admitted gets a ticket and waits in line; see tasks/lines.py for the order. Whoever gives
a place back calls those whose turn it may be; they ask again for themselves, under the locks.
"""

from uuid import UUID

from sqlalchemy.orm import Session

from models.advisory import lock
from models.lines import Entry, call_in, list_entries, tell_places
from models.operation import Operation
from tasks.lines import Room, Wait, Wish, form_lines, ordinal

BUILDS_PER_HOST = 8
LINK, SOURCE, DESTINATION, FETCH = "link", "source", "destination", "fetch"


class MigrationLine:
    """Migrations: so many on a link, leaving a source, arriving at a destination."""

    kind, step, keeps_place = "live_migrate", "migrate", True

    def rooms_of(self, entry: Entry) -> tuple[Room, ...]:
        """Return what a migration needs, the narrowest first."""
        src, dst = str(entry.src_host), str(entry.dst_host)
        return (
            Room((LINK, src, dst), entry.most_on_link),
            Room((SOURCE, src), entry.most_out),
            Room((DESTINATION, dst), entry.most_in),
        )

    def names_locked(self, operation: Operation) -> list[str]:
        """Return what «count, then go on» must be one act for."""
        hosts = sorted(filter(None, (operation.src_host, operation.dst_host)))
        return [f"migrations:{host}" for host in hosts]

    def describe(self, entry: Entry, wait: Wait) -> str:
        """Say for people where a migration stands, and behind what."""
        place = ordinal(wait.place)
        return f"its turn, {place} in line for {entry.src_host} → {entry.dst_host}: {_why(wait)}"


class BuildLine:
    """Builds: so many on a host fetch their images."""

    kind, step, keeps_place = "spawn", "fetch_image", False

    def rooms_of(self, entry: Entry) -> tuple[Room, ...]:
        """Return what a build needs."""
        return (Room((FETCH, str(entry.dst_host)), BUILDS_PER_HOST),)

    def names_locked(self, operation: Operation) -> list[str]:
        """Return what «count, then go on» must be one act for."""
        return [f"builds:{operation.dst_host}"]

    def describe(self, entry: Entry, wait: Wait) -> str:
        """Say for people where a build stands, and behind what."""
        return (
            f"its turn, {ordinal(wait.place)} in line: "
            f"{entry.dst_host} fetches for {wait.inside} guests already"
        )


class Admission:
    """The door of a step.

    Args:
        line: who may be inside together, and how that is told.
    """

    def __init__(self, line: MigrationLine | BuildLine) -> None:
        self._line = line

    def ask(self, session: Session, operation: Operation) -> str | None:
        """Ask for an operation whose step is being claimed; a sentence means «not yet», and why."""
        for name in self._line.names_locked(operation):
            lock(session, name)
        entries = self._list(session, operation)
        # The claim has written it as running; its ticket is as old as it was before.
        me = next(entry for entry in entries if entry.operation_id == operation.id)
        wait = self._form(entries, me)[me.operation_id]
        return None if wait is None else self._line.describe(me, wait)

    def call(self, session: Session, operation: Operation) -> list[UUID]:
        """Call those whose turn it may be, now that an operation has given its places back.

        Returns:
            The operations to ring for, marked as rung.
        """
        entries = self._list(session, operation)
        stands = self._form(entries, None)
        texts: dict[UUID, str] = {}
        for entry in entries:
            wait = stands.get(entry.operation_id)
            if wait is None:
                continue
            waiting_for = self._line.describe(entry, wait)
            if waiting_for != entry.waiting_for:
                texts[entry.operation_id] = waiting_for
        tell_places(session, texts, step=self._line.step)
        free = [operation_id for operation_id, wait in stands.items() if wait is None]
        return call_in(session, free, step=self._line.step)

    def _list(self, session: Session, operation: Operation) -> list[Entry]:
        return list_entries(
            session,
            kind=self._line.kind,
            step=self._line.step,
            src=operation.src_host,
            dst=operation.dst_host,
            keeps_place=self._line.keeps_place,
        )

    def _form(self, entries: list[Entry], me: Entry | None) -> dict[UUID, Wait | None]:
        return form_lines(
            Wish(
                entry.operation_id,
                self._line.rooms_of(entry),
                is_inside=entry.is_inside and entry is not me,
            )
            for entry in entries
            # One that cannot begin, for its host is away, holds nobody up; it keeps its ticket.
            if entry.is_inside or entry.is_heard
        )


def _why(wait: Wait) -> str:
    kind, *hosts = wait.room.name
    if wait.inside == 0:
        # The one that keeps it has not begun: it still stands in the next line.
        return f"{hosts[0]} is kept for one that came before"
    migrations = "1 migration" if wait.inside == 1 else f"{wait.inside} migrations"
    return {
        LINK: f"{migrations} under way between them",
        SOURCE: f"{migrations} leaving {hosts[0]}",
        DESTINATION: f"{migrations} arriving at {hosts[0]}",
    }[kind]


LIMIT_BUILDS = Admission(BuildLine())
LIMIT_MIGRATIONS = Admission(MigrationLine())
