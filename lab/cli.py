"""The command line of the lab: `scripts/lab --help`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from lab import launch
from lab.errors import LabError
from lab.guest import images as guest_images
from lab.handle import Lab
from lab.layout import Layout, default_directory
from lab.logs import show_logs

app = typer.Typer(
    name="lab",
    help="Real hypervisors on this machine: libvirtd in namespaces, Postgres, Redis, tiny guests.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="The lab's directory [default: $INNKEEPER_LAB_DIR or /var/tmp/innkeeper-lab].",
        show_default=False,
    ),
]
RoleName = Annotated[
    str,
    typer.Argument(
        metavar="ROLE[:HOST]",
        help="postgres, redis, libvirtd:HOST, worker:HOST, control, beat, flower.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _show(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def _lab(directory: Path | None) -> Lab:
    return Lab.attach(directory or default_directory())


@app.command()
def up(
    directory: Directory = None,
    hosts: Annotated[int, typer.Option(help="How many hypervisor hosts.")] = 2,
    workers: Annotated[
        bool, typer.Option(help="Run Innkeeper's own processes (control, beat, host workers).")
    ] = True,
    flower: Annotated[bool, typer.Option(help="Run Flower (with --workers).")] = False,
    gluster: Annotated[
        bool, typer.Option("--gluster", help="Mount real shared storage (GlusterFS) on every host.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier lab's data.")] = False,
    owner_pid: Annotated[
        int | None, typer.Option(help="End the lab when this process ends.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable for Innkeeper's processes."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring up a lab and wait until all of it is ready."""
    started = time.monotonic()
    root = (directory or default_directory()).resolve()
    extra = dict(item.split("=", 1) for item in env or [])
    lab = Lab.up(
        root,
        hosts=hosts,
        workers=workers,
        flower=flower,
        gluster=gluster,
        fresh=fresh,
        owner_pid=owner_pid,
        env=extra,
        show=_show,
    )
    _show(f"ready in {time.monotonic() - started:.1f} s: {', '.join(lab.hosts)} in {root}")
    if as_json:
        print(json.dumps(lab.description.as_dict(), indent=2))
    else:
        option = "" if root == default_directory().resolve() else f" --dir {shlex.quote(str(root))}"
        _show(f'next: eval "$(scripts/lab env{option})"   and at the end: scripts/lab down{option}')


@app.command()
def down(
    directory: Directory = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete the lab's directory too.")] = False,
) -> None:
    """Take a lab down; its files stay, so the next `up` finds its guests defined."""
    root = (directory or default_directory()).resolve()
    was_running = launch.down(Layout(root), wipe=wipe)
    _show(f"{root} is down" if was_running else f"no lab was running in {root}")


@app.command()
def status(directory: Directory = None, as_json: AsJson = False) -> None:
    """Show the lab's processes and the cuts of its network."""
    lab = _lab(directory)
    state = lab.status()
    if as_json:
        print(json.dumps(lab.description.as_dict() | state, indent=2))
        return
    for role in state["roles"]:
        since = role["since"] and datetime.fromtimestamp(role["since"]).strftime("%H:%M:%S")
        if role["running"]:
            text = f"running  pid {role['pid']} since {since}"
        elif role["pid"] is None:
            text = "not started"
        else:
            text = f"dead     exit code {role['exit_code']} at {since}"
        print(f"{role['role']:<16} {text}")
    for cut in state["cuts"]:
        arrow = "→" if cut["one_way"] else "↔"
        port = f" port {cut['port']}" if cut["port"] else ""
        print(f"cut              {cut['a']} {arrow} {cut['b']}{port}")


@app.command()
def env(directory: Directory = None) -> None:
    """Print the lab's variables for a shell: eval "$(scripts/lab env)"."""
    for name, value in _lab(directory).env().items():
        print(f"export {name}={_quoted(value)}")


@app.command()
def kill(
    role: Annotated[
        str, typer.Argument(metavar="ROLE[:HOST]", help="A role, or qemu:HOST:DOMAIN.")
    ],
    signal_name: Annotated[
        str, typer.Option("--signal", help="KILL, TERM, STOP, CONT, …")
    ] = "KILL",
    directory: Directory = None,
) -> None:
    """Signal one process of the lab; libvirtd's guests live on without it."""
    name = f"SIG{signal_name.upper().removeprefix('SIG')}"
    if name not in signal.Signals.__members__:
        raise LabError(f"there is no signal {signal_name!r}; try KILL, TERM, STOP or CONT")
    after = _lab(directory).kill(role, signal.Signals[name])
    _show(f"{role} {'still runs' if after['running'] else 'is gone'}")


@app.command()
def start(
    role: RoleName,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable for this one start."),
    ] = None,
    directory: Directory = None,
) -> None:
    """Start a process of the lab again and wait until it is ready."""
    extra = dict(item.split("=", 1) for item in env or [])
    after = _lab(directory).start(role, extra)
    _show(f"{role} runs (pid {after['pid']})")


@app.command()
def cut(
    a: Annotated[str, typer.Argument(help="A host, or `services`.")],
    b: Annotated[str, typer.Argument(help="A host, or `services`.")],
    one_way: Annotated[bool, typer.Option("--one-way", help="Only from A to B.")] = False,
    port: Annotated[int | None, typer.Option(help="Only TCP from or to this port.")] = None,
    directory: Directory = None,
) -> None:
    """Drop packets between two hosts, or between a host and Postgres and Redis."""
    _lab(directory).cut(a, b, one_way=one_way, port=port)


@app.command()
def heal(
    a: Annotated[str | None, typer.Argument(help="With B: only the cuts between these.")] = None,
    b: Annotated[str | None, typer.Argument(help="See A.")] = None,
    directory: Directory = None,
) -> None:
    """Undo cuts of the network, all of them unless two names are given."""
    _lab(directory).heal(a, b)


@app.command()
def logs(
    role: Annotated[
        str | None, typer.Argument(metavar="[ROLE[:HOST]]", help="Default: all, and supervisor.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as they grow.")] = False,
    lines: Annotated[int, typer.Option("-n", help="How many lines of each.")] = 20,
    directory: Directory = None,
) -> None:
    """Show logs, of running and of dead processes."""
    show_logs(Layout((directory or default_directory()).resolve()), role, lines, follow)


@app.command("exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def exec_(
    host: Annotated[str, typer.Argument(help="A host's name.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD…")],
    directory: Directory = None,
) -> None:
    """Run a command inside a host: its network, its mounts, its name."""
    lab = _lab(directory)
    if host not in lab.hosts:
        raise LabError(f"there is no host {host!r}; the lab has {', '.join(lab.hosts)}")
    argv = lab.host_command(host, command)
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted


@app.command()
def image() -> None:
    """Build the guest image, unless it is built already, and print its path."""
    print(guest_images.ensure(_show).guest)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def main() -> None:
    """Run the command line; a LabError becomes one message and exit code 1."""
    try:
        app()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        sys.exit(1)
