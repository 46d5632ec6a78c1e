"""Which parts of Innkeeper can be reached from here, outermost first, and what to do if not."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from innkeeper import contract
from innkeeper.errors import InnkeeperError
from innkeeper.transport import Transport
from innkeeper.types import View


class Part(View):
    """One part of Innkeeper, as somebody who tried it found it.

    Args:
        part: what was tried.
        ok: whether it works.
        message: what was found.
        hint: what to do about it; empty when it works.
    """

    part: str
    ok: bool
    message: str = ""
    hint: str = ""


_REDIS_HINT = (
    "Start Redis, or correct {variable}; a firewall that drops packets looks like this too."
)


def check(transport: Transport) -> list[Part]:
    """Try every part; a broken one is an entry of the list, not an exception.

    Returns:
        The broker, the result backend, the control worker and, if that one answers, the parts it
        knows of. What lies behind a broken part is left out.
    """
    broker = _tried(
        "broker",
        transport.ping_broker,
        "takes messages",
        _REDIS_HINT.format(variable="INNKEEPER_BROKER_URL"),
    )
    results = _tried(
        "result backend",
        lambda: transport.find_outcome(uuid4()),
        "answers",
        _REDIS_HINT.format(variable="INNKEEPER_RESULT_URL"),
    )
    if not (broker.ok and results.ok):
        return [broker, results]
    answer: dict[str, Any] = {}
    control = _tried(
        "control worker",
        lambda: answer.update(transport.ask(contract.SYSTEM_CHECK, {})),
        "answers",
        "Start a worker on the queue control, with the same Redis as here, and read its log.",
    )
    return [broker, results, control, *map(Part.model_validate, answer.get("parts", []))]


def _tried(part: str, attempt: Callable[[], Any], found: str, hint: str) -> Part:
    try:
        attempt()
    except InnkeeperError as exc:
        return Part(part=part, ok=False, message=exc.message, hint=hint)
    return Part(part=part, ok=True, message=found)
