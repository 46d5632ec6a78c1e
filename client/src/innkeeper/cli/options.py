"""The options that many commands share, written once."""

from typing import Annotated

import typer

from innkeeper.client import Innkeeper
from innkeeper.errors import InvalidRequest, NotFound
from innkeeper.operation import Operation

InstanceArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The guest's name or UUID.", show_default=False)
]
HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", help="The host's name.", show_default=False)
]
OperationArgument = Annotated[
    str,
    typer.Argument(
        metavar="OPERATION",
        help="The operation's id, or the first characters of it.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout instead.")
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Print the operation's id and return at once.")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Stop waiting after this many seconds; the operation goes on.",
        metavar="SECONDS",
    ),
]
ReasonOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Why, for the operation's record.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="A name for this request: sent twice with the same key, it is one operation.",
    ),
]

# How far back an abbreviated id is looked for.
_ABBREVIATION_LIMIT = 1000
_UUID_LENGTH = 36


def find_operation(inn: Innkeeper, text: str) -> Operation:
    """Return the operation that an id, or the beginning of one, means.

    Raises:
        NotFound: when no recent operation's id begins so.
        InvalidRequest: when more than one does, or the text cannot begin an id.
    """
    beginning = text.strip().lower()
    if len(beginning) >= _UUID_LENGTH:
        return inn.operation(beginning)
    if not beginning or set(beginning) - set("0123456789abcdef-"):
        raise InvalidRequest(
            f"{text!r} cannot be the beginning of an operation's id.",
            {"hint": "List operations with innkeeper operations."},
        )
    matches = [
        view.id
        for view in inn.operations(limit=_ABBREVIATION_LIMIT)
        if str(view.id).startswith(beginning)
    ]
    if not matches:
        raise NotFound(
            f"No recent operation's id begins with {beginning}.",
            {"what": "operation", "name": beginning},
        )
    if len(matches) > 1:
        raise InvalidRequest(
            f"{len(matches)} operations' ids begin with {beginning}.",
            {"hint": "Give more of it: " + ", ".join(str(each) for each in matches[:5])},
        )
    return inn.operation(matches[0])
