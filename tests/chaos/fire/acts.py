"""What is asked of each guest, one act after another, drawn from the seed alone.

The plan of a guest does not look at what happens to it: it supposes that every act succeeds. Who
plays it brings the guest into the condition that an act needs when it is in another.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HOSTS = ("hv-a", "hv-b", "hv-c")

# Condition before → verbs with their weights and the condition after.
VERBS: dict[str, dict[str, tuple[int, str]]] = {
    "absent": {"spawn": (1, "active")},
    "active": {
        "live_migrate": (8, "active"),
        "stop": (3, "stopped"),
        "reboot": (3, "active"),
        "delete": (2, "absent"),
    },
    "stopped": {"start": (4, "active"), "delete": (1, "absent")},
}
RIVALS = ("stop", "start", "reboot", "delete", "live_migrate")


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """One guest of the fire.

    Args:
        name: unique in the lab.
        is_linux: a real Linux instead of a boot sector.
        pool: ``local`` migrates its disk along, ``shared`` does not.
        is_plain: whether a plain Celery program asks instead of the typed client.
    """

    name: str
    is_linux: bool
    pool: str
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Act:
    """One request and what comes with it.

    Args:
        verb: the operation's kind.
        needs: the guest's condition before: ``absent``, ``active``, ``stopped``.
        fields: of the request, beside the guest's own.
        pause_s: time before it.
        cancel_after_s: cancel it so long after it was sent; None for never.
        is_doubled: send it twice under one idempotency key.
        rival: a verb that somebody else asks for meanwhile; None for nobody.
        rival_after_s: how long after.
    """

    verb: str
    needs: str
    fields: dict[str, Any] = field(default_factory=dict)
    pause_s: float = 0.0
    cancel_after_s: float | None = None
    is_doubled: bool = False
    rival: str | None = None
    rival_after_s: float = 0.0


def list_guests(*, small: int = 5) -> list[GuestPlan]:
    """Return the guests: small ones of every kind, and one Linux."""
    guests = [
        GuestPlan(f"fire-{n}", False, "shared" if n % 2 else "local", n % 3 == 2)
        for n in range(small)
    ]
    return [*guests, GuestPlan("fire-linux", True, "local", False)]


def draw_acts(seed: str, guest: GuestPlan) -> Iterator[Act]:
    """Yield a guest's acts without end, the same for the same seed."""
    draw = random.Random(f"{seed} {guest.name}")
    condition = "absent"
    while True:
        verbs = VERBS[condition]
        verb = draw.choices(list(verbs), [weight for weight, _ in verbs.values()])[0]
        yield Act(
            verb=verb,
            needs=condition,
            fields=_draw_fields(draw, verb),
            pause_s=round(draw.uniform(0.05, 2.0), 2),
            cancel_after_s=round(draw.uniform(0.0, 3.0), 2) if draw.random() < 0.15 else None,
            is_doubled=draw.random() < 0.1,
            rival=draw.choice(RIVALS) if draw.random() < 0.15 else None,
            rival_after_s=round(draw.uniform(0.0, 1.5), 2),
        )
        condition = verbs[verb][1]


def repair_for(condition: str, needed: str) -> Act | None:
    """Return what brings a guest nearer to the needed condition; None when nothing is to be done.

    Args:
        condition: the guest's condition: as in `VERBS`, or anything else.
        needed: one of `VERBS`.
    """
    if condition == needed or condition not in VERBS:
        return None
    if needed == "absent":
        return Act("delete", condition)
    if condition == "absent":
        return Act("spawn", condition)
    if needed == "active":
        return Act("start", condition)
    return Act("stop", condition, {"force": True})


def _draw_fields(draw: random.Random, verb: str) -> dict[str, Any]:
    # Both are always drawn, so that a change of one verb's fields does not shift all later draws.
    host, grace_s = draw.choice((None, None, *HOSTS)), round(draw.uniform(0.0, 2.0), 1)
    is_forced, is_slow = draw.random() < 0.4, draw.random() < 0.5
    match verb:
        case "spawn":
            return {"host": host}
        case "live_migrate":
            return {"dst": host, "deadline_s": 60, "bandwidth_mib_s": 24 if is_slow else 0}
        case "stop":
            return {"force": is_forced, "grace_s": grace_s}
        case "reboot":
            return {"kind": "hard" if is_forced else "soft", "grace_s": grace_s}
        case _:
            return {}
