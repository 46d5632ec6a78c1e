"""The control role: accepts requests, answers questions, sweeps."""

import socket

from tasks.catalogue import WORKFLOWS
from tasks.notifications import EventRelay
from tasks.sweeper import sweep_once
from workers.engine import build_engine
from workers.node_lock import take_node_lock
from workers.notifications import RelayThread
from workers.settings import Settings
from workers.worker import run_worker


def run_control(settings: Settings, *, name: str | None = None) -> int:
    """Work on the control queue until told to stop.

    Args:
        settings: this process's settings.
        name: tells several control workers on one machine apart.
    """
    node = f"control-{name or socket.gethostname()}"
    lock = take_node_lock(settings.lock_dir.parent, node)
    app, engine = build_engine(settings, node=node, services=None)
    stream = settings.event_stream
    relay = EventRelay(
        engine.database,
        stream=stream,
        length=settings.event_stream_length,
        max_age_s=settings.event_max_age_s,
        owner=engine.leases.owner,
    )
    relaying = RelayThread(app, relay, stream)

    def stop() -> None:
        relaying.stop()
        engine.database.dispose()

    relaying.start()
    try:
        return run_worker(
            app,
            engine,
            node=node,
            queue="control",
            concurrency=settings.concurrency,
            ready_file=settings.ready_file,
            on_stop=stop,
        )
    finally:
        lock.close()


def sweep_now(settings: Settings) -> str:
    """Do one sweep without any message, for cron or for a hand; returns what it found."""
    _, engine = build_engine(settings, node=f"sweep-{socket.gethostname()}", services=None)
    try:
        report = sweep_once(engine.database, WORKFLOWS, engine.bells)
    finally:
        engine.database.dispose()
    return (
        f"rung {report.rung}, turned back {report.turned_back}, "
        f"outcomes published {report.published}"
    )
