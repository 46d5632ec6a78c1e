"""Entry of the supervisor process: `python -m lab.supervise`, started by `lab.launch` only.

It runs as init of a new PID namespace with a mount namespace of its own.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import protocol
from lab.description import Images
from lab.errors import SUPERVISOR_FAILED, LabError
from lab.layout import Layout
from lab.processes import ProcessTable
from lab.progress import Progress
from lab.supervisor import Supervisor

_log = logging.getLogger("lab")


def _privatise_mounts() -> None:
    """Show this namespace's processes in /proc, and hide the machine's /run with its sockets."""
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)


def _hold_lock(layout: Layout) -> int:
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LabError(
            f"a lab is running in {layout.root} already; take it down with `scripts/lab down`"
            " or choose another --dir"
        ) from None
    return fd


async def _serve(options: dict[str, Any], progress: Progress) -> None:
    layout = Layout(Path(options["directory"]))
    table = ProcessTable(options["outer_proc_fd"])
    table.watch()
    supervisor = Supervisor(layout, table, progress)
    loop = asyncio.get_running_loop()
    leaving: set[asyncio.Task[None]] = set()

    def leave(why: str) -> None:
        leaving.add(asyncio.create_task(supervisor.down(why)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave, f"received {number.name}")
    owner_fd = options["owner_fd"]
    if owner_fd is not None:

        def owner_gone() -> None:
            loop.remove_reader(owner_fd)
            leave(f"the owner has gone: {options['owner']}")

        loop.add_reader(owner_fd, owner_gone)
    server = await protocol.serve(layout.control_socket, supervisor.answer)
    try:
        await supervisor.up(
            options["hosts"],
            Images(**options["images"]),
            workers=options["workers"],
            flower=options["flower"],
            with_gluster=options["gluster"],
            extra_env=options["env"],
        )
    except LabError as error:
        _log.error("could not come up: %s", error)
        await supervisor.stop()
        progress.failed(str(error))
        return
    progress.ready()
    _log.info("ready")
    async with server:
        await asyncio.Event().wait()


def main() -> None:
    """Run the lab described by the JSON in the first argument."""
    options = json.loads(sys.argv[1])
    progress = Progress(options["progress_fd"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    faulthandler.enable()
    for fd in (options["outer_proc_fd"], options["owner_fd"]):
        if fd is not None:
            os.set_inheritable(fd, False)
    try:
        lock_fd = _hold_lock(Layout(Path(options["directory"])))
        _privatise_mounts()
        asyncio.run(_serve(options, progress))
        os.close(lock_fd)
    except LabError as error:
        progress.failed(str(error))
        sys.exit(SUPERVISOR_FAILED)
    except BaseException as error:
        # The lab's end, whatever it is: nobody else can say afterwards what it was.
        _log.exception("unexpected")
        progress.failed(f"unexpected in the lab's supervisor: {error!r}")
        sys.exit(SUPERVISOR_FAILED)


if __name__ == "__main__":
    main()
