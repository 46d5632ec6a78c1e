"""Writes docs/reference/ from the code: settings, requests, tasks, commands, errors, tables.

Run by ``scripts/docs``; with ``--check`` nothing is written and the exit code says whether the
committed pages are what the code says today.
"""

import enum
import functools
import inspect
import json
import re
import socket
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from celery import Celery
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlalchemy import CheckConstraint, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

import models.schema  # noqa: F401 (imports every module that defines a table)
from innkeeper import drain_types, evacuation_types, guest_parts, image_types, types
from innkeeper.cli.app import app as cli
from innkeeper.contract import QUERY_TASKS, REQUEST_TASKS
from innkeeper.errors import InnkeeperError, catalogue
from innkeeper.states import Handover
from models.base import Base
from tasks.catalogue import WORKFLOWS
from tasks.crashpoints import list_points
from tasks.requests import ACCEPT
from tasks.workflow import task_name
from workers.app import build_app
from workers.engine import register_everything
from workers.settings import PREFIX, Settings

REFERENCE = Path(__file__).resolve().parent / "reference"
MADE = "<!-- Made by scripts/docs from the code. Do not edit: change the code and run it again. -->"
HEADINGS = ("Queue", "Idempotency", "Undo", "On crash", "Retries")
REQUEST_TYPES: tuple[type[BaseModel], ...] = (
    types.InstanceSpec,
    guest_parts.ExtraDisk,
    guest_parts.NetworkCard,
    guest_parts.DirectBoot,
    guest_parts.Hardware,
    guest_parts.CpuTopology,
    guest_parts.GuestData,
    guest_parts.InjectedFile,
    guest_parts.GroupMembership,
    types.MigrationPolicy,
    types.MigrationDefaults,
    types.MigrationChange,
    types.StopPolicy,
    types.RebootPolicy,
    image_types.PrewarmSpec,
    drain_types.DrainPolicy,
    evacuation_types.EvacuationSpec,
)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; bars inside cells are escaped."""
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines.extend([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(title: str, *parts: str) -> str:
    """Return a whole page."""
    return "\n\n".join([f"# {title}", MADE, *parts]) + "\n"


def first_paragraph(thing: object) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def argument_texts(thing: object) -> dict[str, str]:
    """Return the entries of a docstring's ``Args:`` by name."""
    _, _, after = (inspect.getdoc(thing) or "").partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.+(?:\n {8,}.+)*)", after, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in entries}


def type_text(annotation: Any) -> str:
    """Say in words what a field takes."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if typing.get_origin(annotation) is typing.Annotated:
        return type_text(arguments[0])
    if typing.get_origin(annotation) is tuple:
        return f"list of {type_text(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if type(None) in arguments:
        return " or ".join(type_text(each) for each in arguments if each is not type(None))
    names = {str: "text", SecretStr: "text", int: "integer", float: "number", Path: "path"}
    names |= {bool: "`true`, `false`", list[str]: "text"}
    return names.get(annotation, "table" if "dict" in str(annotation) else str(annotation))


def limits(field: FieldInfo) -> str:
    """Return a field's bounds and pattern."""
    found = [*field.metadata]
    for each in typing.get_args(field.annotation):
        found += getattr(each, "__metadata__", ())
    found += [inner for each in list(found) for inner in getattr(each, "metadata", ())]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "max_length": "length ≤"}
    texts = [
        f"{sign} {getattr(each, name)}"
        for each in found
        for name, sign in signs.items()
        if getattr(each, name, None) is not None
    ]
    return ", ".join(dict.fromkeys(texts))


def default_text(field: FieldInfo) -> str:
    """Return a field's default as it would be written."""
    if field.default_factory is socket.gethostname:
        return "the machine's host name"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its own"
    if value == ():
        return "none"
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`"
    if isinstance(value, dict):
        plain = {
            k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v
            for k, v in value.items()
        }
        return f"`{json.dumps(plain)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "-" if value is None else f"`{value}`" if str(value) else "empty"


def settings_page() -> str:
    """Return the settings of the workers."""
    rows = (
        (
            f"`{name}`",
            f"`{PREFIX}{name.upper()}`",
            ", ".join(filter(None, [type_text(field.annotation), limits(field)])),
            default_text(field),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    )
    return page(
        "Settings",
        "Settings of every process that `python -m workers` starts. Order, last wins: defaults, "
        "`/etc/innkeeper/worker.toml`, `INNKEEPER_…` in the environment, the command line. "
        "An unknown name or a wrong value stops the process with a list of all problems. "
        "`python -m workers settings` shows each value and where it came from.",
        table(("Name in the file", "Variable", "Takes", "Default", "Meaning"), rows),
        "The client and the command `innkeeper` read only `INNKEEPER_BROKER_URL` and "
        "`INNKEEPER_RESULT_URL`. The lab reads `INNKEEPER_LAB_DIR` (its directory) and "
        "`INNKEEPER_LAB_CACHE` (what it keeps between runs).",
        "What the keys of `pools` mean, and an example of the file: "
        "[run a worker](../howto/run-a-worker.md).",
    )


def requests_page() -> str:
    """Return the fields of every request."""
    parts = []
    for cls in REQUEST_TYPES:
        texts = argument_texts(cls)
        rows = (
            (
                f"`{name}`",
                ", ".join(filter(None, [type_text(field.annotation), limits(field)])),
                default_text(field),
                texts.get(name, ""),
            )
            for name, field in cls.model_fields.items()
        )
        parts += [f"## {cls.__name__}", first_paragraph(cls).replace("``", "`")]
        parts.append(table(("Field", "Takes", "Default", "Meaning"), rows))
    parts += ["## Handover", inspect.getdoc(Handover) or ""]
    return page(
        "Requests",
        "What a service sends. A field that is not listed is refused; all wrong fields are named "
        "at once. Which task takes which: [tasks](tasks.md).",
        *parts,
    )


@functools.cache
def build_documented_app() -> Celery:
    """Build an application with every task; nothing is connected."""
    settings = Settings(
        database_url=SecretStr("postgresql+psycopg://nowhere/none"),
        broker_url=SecretStr("redis://nowhere/0"),
        result_url=SecretStr("redis://nowhere/1"),
        host_name="docs",
    )
    app = build_app(settings, node="docs")

    def no_engine() -> Any:
        raise RuntimeError("the documentation runs no task")

    register_everything(app, no_engine)
    return app


def task_sections(doc: str) -> dict[str, str]:
    """Split a task's docstring into its headings."""
    found: dict[str, str] = {}
    for line in inspect.cleandoc(doc).splitlines():
        name, colon, text = line.strip().partition(":")
        if colon and name in HEADINGS:
            found[name] = text.strip()
        elif found and line.strip():
            last = list(found)[-1]
            found[last] += " " + line.strip()
    return found


def task_part(app: Celery, name: str) -> str:
    """Return one task's entry."""
    doc = app.tasks[name].__doc__ or ""
    lines = [f"### `{name}`", "", " ".join(inspect.cleandoc(doc).split("\n\n")[0].split())]
    if name + ".undo" in app.tasks:
        lines[-1] += f" Its undo is `{name}.undo`, on the same queue."
    lines.append("")
    lines += [f"* {key}: {text}" for key, text in task_sections(doc).items()]
    return "\n".join(lines).replace("``", "`")


def tasks_page() -> str:
    """Return the catalogue of tasks."""
    app = build_documented_app()
    steps = {
        flow.kind: [task_name(flow.kind, step.name, is_undo=False) for step in flow.steps]
        for flow in WORKFLOWS
    }
    listed = {*REQUEST_TASKS, *QUERY_TASKS, *(name for names in steps.values() for name in names)}
    chores = [
        name
        for name in sorted(app.tasks)
        if name.startswith("innkeeper.") and name.removesuffix(".undo") not in listed
    ]
    arguments = table(
        ("Task", "Arguments"),
        [
            ("`innkeeper.instance.spawn`", "`spec`: [InstanceSpec](requests.md#instancespec)"),
            (
                "`innkeeper.instance.live_migrate`",
                "`instance`, `policy`: [MigrationPolicy](requests.md#migrationpolicy)",
            ),
            (
                "`innkeeper.instance.stop`",
                "`instance`, `policy`: [StopPolicy](requests.md#stoppolicy)",
            ),
            (
                "`innkeeper.instance.reboot`",
                "`instance`, `policy`: [RebootPolicy](requests.md#rebootpolicy)",
            ),
            ("`innkeeper.instance.start`, `innkeeper.instance.delete`", "`instance`"),
            (
                "`innkeeper.host.drain`",
                "`host`, `policy`: [DrainPolicy](requests.md#drainpolicy)",
            ),
            ("`innkeeper.image.prewarm`", "`spec`: [PrewarmSpec](requests.md#prewarmspec)"),
            (
                "`innkeeper.host.evacuate`",
                "`spec`: [EvacuationSpec](requests.md#evacuationspec)",
            ),
        ],
    )
    parts = [
        "Every Celery task of this release. Names never change. Services send the tasks of the "
        "first two sections to the queue `control`; the others are Innkeeper's own.",
        "## Requests",
        "Each becomes an operation whose id is the task's id. All take `idempotency_key`, "
        "`requested_by` and `reason` too. `instance` is a name or a UUID.",
        arguments,
        *(task_part(app, name) for name in sorted(REQUEST_TASKS)),
        "## Questions and small commands",
        *(task_part(app, name) for name in sorted(QUERY_TASKS)),
    ]
    for kind, names in steps.items():
        parts.append(f"## Steps of {kind}")
        parts.extend(task_part(app, name) for name in names)
    parts.append("## Chores")
    parts.extend(task_part(app, name) for name in chores)
    return page("Tasks", *parts)


def option_rows(command: Any) -> Iterator[tuple[str, str, str]]:
    """Yield a command's arguments and options."""
    for each in command.params:
        annotation = each.type_descriptor.annotation
        takes = "" if getattr(each, "is_flag", False) else type_text(annotation)
        if hasattr(each, "is_flag"):
            name = ", ".join(f"`{option}`" for option in each.opts)
        else:
            name = f"`{each.metavar or each.name.upper()}`"
        needed = " Required." if each.required else ""
        yield name, takes, f"{each.help or ''}{needed}"


def walk_commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def cli_page() -> str:
    """Return the commands of ``innkeeper``."""
    group: Any = typer.main.get_command(cli)
    parts = []
    for name, command in walk_commands(group):
        example = (command.epilog or "").removeprefix("Example: ")
        parts += [f"## innkeeper {name}", command.help.strip(), f"```\n{example}\n```"]
        parts.append(table(("Argument or option", "Takes", "Meaning"), option_rows(command)))
    by_code: dict[int, list[str]] = {}
    for code, cls in catalogue().items():
        by_code.setdefault(cls.exit_code, []).append(f"[`{code}`](../howto/errors/{code}.md)")
    rows = [(0, "the command, and the operation it waited for, succeeded")]
    rows += [(code, ", ".join(by_code[code])) for code in sorted(by_code)]
    rows.append((130, "Ctrl-C: the wait has ended, the operation goes on"))
    return page(
        "The command `innkeeper`",
        "It reads `INNKEEPER_BROKER_URL` and `INNKEEPER_RESULT_URL`, and needs nothing else. "
        "With `--json` every command prints one JSON document on stdout; an error is "
        '`{"error": {"code", "message", "hint", "effect", …}}`. Without it results go to stdout, '
        "progress and errors to stderr.",
        *parts,
        "## Exit codes",
        table(("Code", "Meaning"), rows),
    )


def errors_page() -> str:
    """Return the tree of errors."""

    def walk(cls: type[InnkeeperError], depth: int) -> Iterator[tuple[object, ...]]:
        yield (
            "&nbsp;" * 4 * depth + f"[`{cls.code}`](../howto/errors/{cls.code}.md)",
            f"`{cls.__name__}`",
            first_paragraph(cls).replace("``", "`"),
            cls.exit_code,
            "yes" if cls.retryable else "no",
            f"`{cls.default_effect.value}`",
        )
        for below in cls.__subclasses__():
            yield from walk(below, depth + 1)

    return page(
        "Errors",
        "Every error of Innkeeper, as the class `innkeeper.errors.…` in Python and as `code` in "
        "JSON. Each code's page says what it means, where the guest is and what to do. "
        "`effect` is where the failed operation left the guest: `not_started` (nothing was "
        "changed), `rolled_back`, `done`, `unknown`; the column shows the class's default. "
        "Retryable errors are tried again by the engine before anybody sees them.",
        table(
            ("Code", "Class", "Meaning", "Exit code", "Retryable", "Effect"),
            walk(InnkeeperError, 0),
        ),
    )


def table_part(name: str, made: Table, doc: str) -> str:
    """Return one database table's entry."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    rows = []
    for column in made.columns:
        facts = ["primary key"] if column.primary_key else []
        facts += [f"→ `{key.target_fullname}`" for key in column.foreign_keys]
        facts += ["unique"] if column.unique else []
        facts += ["may be null"] if column.nullable else []
        default: Any = column.server_default
        if default is not None and hasattr(default, "arg"):
            facts.append(f"default `{default.arg}`")
        values = getattr(column.type, "enums", None)
        shown = ", ".join(f"`{v}`" for v in values) if values else column.type.compile(dialect)
        rows.append((f"`{column.name}`", shown, ", ".join(facts)))
    rules = [
        f"* check `{each.name}`: `{each.sqltext}`"
        for each in sorted(made.constraints, key=lambda c: str(c.name))
        if isinstance(each, CheckConstraint) and " IN (__" not in str(each.sqltext)
    ]
    rules += [
        f"* unique: {', '.join(f'`{column.name}`' for column in each.columns)}"
        for each in sorted(made.constraints, key=lambda c: str(c.name))
        if isinstance(each, UniqueConstraint) and len(each.columns) > 1
    ]
    for index in sorted(made.indexes, key=lambda each: str(each.name)):
        condition = index.dialect_options["postgresql"]["where"]
        if index.unique:
            columns = ", ".join(f"`{each.name}`" for each in index.columns)
            where = "" if condition is None else f" where `{condition}`"
            rules.append(f"* unique `{index.name}`: {columns}{where}")
    parts = [f"## {name}", doc, table(("Column", "Type", "Facts"), rows)]
    return "\n\n".join([*parts, *(["\n".join(rules)] if rules else [])])


def database_page() -> str:
    """Return the tables of the database."""
    docs = {
        mapper.class_.__tablename__: (inspect.getdoc(mapper.class_) or "").replace("``", "`")
        for mapper in Base.registry.mappers
    }
    parts = [
        table_part(name, made, docs.get(name, ""))
        for name, made in sorted(Base.metadata.tables.items())
    ]
    return page(
        "Tables",
        "The rows that are the truth. The schema is made by `python -m workers migrate`; what "
        "the code must not do is refused by the constraints listed here. Only workers write.",
        *parts,
    )


def crash_points_page() -> str:
    """Return every boundary at which a test can make a process die."""
    points = list_points(WORKFLOWS, ACCEPT)
    moments = {point.moment: point.meaning for point in points}
    places: dict[str, list[str]] = {}
    for point in points:
        places.setdefault(point.name.rpartition(":")[0], []).append(point.moment)
    return page(
        "Crash points",
        f"The {len(points)} boundaries at which a test can make a process kill itself, or wait "
        "while something else is broken: `<where>:<moment>`. They are derived from the workflows. "
        "How they are used: [under fire](../design/under-fire.md).",
        "## Moments",
        table(("Moment", "What is true then"), ((f"`{m}`", text) for m, text in moments.items())),
        "## Places",
        table(
            ("Where", "Moments"),
            ((f"`{where}`", ", ".join(f"`{m}`" for m in each)) for where, each in places.items()),
        ),
    )


def pages() -> dict[Path, str]:
    """Return every page of the reference by its path."""
    made = {
        "settings": settings_page,
        "requests": requests_page,
        "tasks": tasks_page,
        "cli": cli_page,
        "errors": errors_page,
        "database": database_page,
        "crash-points": crash_points_page,
    }
    return {REFERENCE / f"{name}.md": make() for name, make in made.items()}


def main() -> int:
    """Write the pages, or with ``--check`` compare them; return the exit code."""
    wanted = pages()
    if "--check" not in sys.argv[1:]:
        REFERENCE.mkdir(exist_ok=True)
        for path, text in wanted.items():
            path.write_text(text)
        return 0
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
    stale += [path for path in REFERENCE.glob("*.md") if path not in wanted]
    for path in stale:
        print(f"{path} is not what the code says; run scripts/docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
