"""Follows Innkeeper's events and prints where guests are; goes on where it was after a restart.

INNKEEPER_BROKER_URL=… INNKEEPER_RESULT_URL=… python consume_events.py last-event-id
"""

import sys
from pathlib import Path

from innkeeper import EventsLost, EventView, Innkeeper


def deal_with(event: EventView) -> None:
    """Replace this by what your service does; twice for one event must do no harm."""
    if event.kind.startswith("instance."):
        print(event.id, event.instance_name, event.kind, event.host or "-", flush=True)


def run(inn: Innkeeper, place: Path) -> None:
    """Deal with every event; the id of the last one is kept in a file."""
    last = int(place.read_text()) if place.exists() else inn.events(limit=0).newest
    while True:
        try:
            for event in inn.follow_events(after=last):
                deal_with(event)
                last = event.id
                place.write_text(str(last))  # After the deed: a crash in between repeats one event.
        except EventsLost as lost:
            for guest in inn.instances():  # Away for too long: begin with what is there now.
                print("-", guest.name, f"instance.{guest.state}", guest.host or "-", flush=True)
            last = lost.details["newest"]


if __name__ == "__main__":
    with Innkeeper() as inn:
        run(inn, Path(sys.argv[1]))
