"""The command line as a whole: which commands there are, and how every one of them ends."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from innkeeper.cli import (
    doctor,
    drain,
    evacuation,
    events,
    images,
    inventory,
    operations,
    sealing,
    steering,
    verbs,
)
from innkeeper.cli.follow import Detached
from innkeeper.cli.screen import print_error, print_json
from innkeeper.errors import InnkeeperError, InternalError, InvalidRequest

INTERRUPTED = 130

app = typer.Typer(
    name="innkeeper",
    help="Spawn, move and look after virtual machines. Reads INNKEEPER_BROKER_URL and "
    "INNKEEPER_RESULT_URL.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
verbs.register(app)
drain.register(app)
inventory.register(app)
images.register(app)
evacuation.register(app)
operations.register(app)
events.register(app)
steering.register(app)
sealing.register(app)
doctor.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's own name.

    Returns:
        The exit code: 0, the error class's own, or 130 after Ctrl-C.
    """
    try:
        return _run(arguments)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    try:
        ended: Any = app(
            list(arguments) or ["--help"], standalone_mode=False, prog_name="innkeeper"
        )
        return ended if isinstance(ended, int) else 0
    except Detached as detached:
        if as_json:
            print_json({"operation_id": str(detached.operation_id), "detached": True})
        else:
            detached.explain()
        return INTERRUPTED
    except InnkeeperError as error:
        return _failed(error, as_json)
    except typer.TyperException as misused:
        return _failed(_misused(misused, arguments), as_json)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as defect:
        return _failed(_defect(defect), as_json)


def _failed(error: InnkeeperError, as_json: bool) -> int:
    print_error(error, as_json=as_json)
    return error.exit_code


def _misused(misused: typer.TyperException, arguments: Sequence[str]) -> InvalidRequest:
    command = next((each for each in arguments if each in _command_names()), None)
    usage = " ".join(filter(None, ["innkeeper", command, "--help"]))
    return InvalidRequest(misused.format_message(), {"hint": f"See {usage}."})


def _command_names() -> set[str]:
    commands = {command.name for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    return {name for name in commands | groups if isinstance(name, str)}


def _defect(defect: Exception) -> InternalError:
    return InternalError(
        f"The command failed with {type(defect).__name__}: {defect}",
        {
            "exception": type(defect).__name__,
            "hint": "Report it, with the command and the release of the client.",
        },
    )
