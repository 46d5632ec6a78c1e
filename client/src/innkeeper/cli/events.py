"""The command that shows what has happened, and what happens."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from innkeeper.cli.options import JsonOption
from innkeeper.cli.screen import print_json, print_table, stdout
from innkeeper.client import Innkeeper
from innkeeper.event_types import EventView

_UNTOLD = frozenset({"from", "to", "src", "dst", "position", "kind"})


def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")
    ] = False,
    instance: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only those of this guest.")
    ] = None,
    after: Annotated[
        int | None, typer.Option(metavar="ID", min=0, help="Begin behind the event with this id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="How many of the past at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show the newest events; with --follow also all that come. JSON is one line for each then."""
    with Innkeeper() as inn:
        if not follow:
            page = inn.events(after, limit=limit, instance=instance)
            _show_page(page.events, as_json)
            return
        for event in _begin_and_follow(inn, after, limit, instance):
            _show_one(event, as_json)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "events",
        epilog="Example: innkeeper events --follow --instance vm-1",
        rich_help_panel="Look around",
    )(events)


def _begin_and_follow(
    inn: Innkeeper, after: int | None, limit: int, instance: str | None
) -> Iterator[EventView]:
    """Yield some of the past, unless told where to begin, and all that comes."""
    if after is None:
        # Asked first: what happens in between is in the past's page or comes after it.
        after = inn.events(limit=0).newest
        for event in inn.events(limit=limit, instance=instance).events:
            if event.id <= after:
                yield event
    for event in inn.follow_events(after):
        if instance is None or instance in (event.instance_name, str(event.instance)):
            yield event


def _show_page(page: list[EventView], as_json: bool) -> None:
    if as_json:
        print_json([each.model_dump(mode="json") for each in page])
        return
    print_table(
        ("ID", "AT", "WHAT", "GUEST", "HOST", "MORE"),
        (
            (each.id, _at(each), each.kind, _guest(each), each.host, _more(each) or None)
            for each in page
        ),
        empty="Nothing has happened, or it is no longer kept.",
    )


def _show_one(event: EventView, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(event.model_dump_json() + "\n")
        sys.stdout.flush()
        return
    words = (str(event.id), _at(event), event.kind, _guest(event), event.host, _more(event))
    stdout().print(Text("  ".join(word for word in words if word)), soft_wrap=True)


def _at(event: EventView) -> str:
    return event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _guest(event: EventView) -> str | None:
    return event.instance_name or (str(event.instance) if event.instance else None)


def _more(event: EventView) -> str:
    data = event.data
    told: list[str] = []
    if "kind" in data:
        told.append(str(data["kind"]))
    before, now = data.get("from", data.get("src")), data.get("to")
    if before is not None:
        told.append(f"{before} → {now or data.get('dst') or event.host or ''}".rstrip())
    told += [f"{name}={_short(data[name])}" for name in data if name not in _UNTOLD]
    return " ".join(told)


def _short(value: Any) -> str:
    return str(value) if len(str(value)) <= 120 else f"{str(value)[:117]}…"
