"""``python -m workers``: every process of Innkeeper, by role."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from workers.logs import configure_logs
from workers.settings import Settings, SettingsError, load_settings

cli = typer.Typer(
    help="Innkeeper's processes. Settings come from /etc/innkeeper/worker.toml and INNKEEPER_…; "
    "see them with: python -m workers settings",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
ROOT = Path(__file__).resolve().parent.parent


def _refuse(wrong: SettingsError) -> NoReturn:
    typer.echo(f"The settings are wrong:\n{wrong}", err=True)
    raise typer.Exit(2) from None


def _load(node: str, **overrides: Any) -> Settings:
    try:
        settings, _ = load_settings(overrides=overrides)
    except SettingsError as exc:
        _refuse(exc)
    configure_logs(settings, node=f"host-{settings.host_name}" if node == "host" else node)
    return settings


@cli.command()
def host(
    name: Annotated[str | None, typer.Option(help="The host's name in the database.")] = None,
) -> None:
    """Run the worker of one hypervisor.

    Example: python -m workers host --name hv-a
    """
    from innkeeper.errors import FencingError
    from workers.host import HostRole
    from workers.node_lock import NodeIsTaken

    settings = _load("host", host_name=name)
    try:
        code = HostRole(settings).run()
    except SettingsError as exc:
        _refuse(exc)
    except (FencingError, NodeIsTaken) as exc:
        typer.echo(f"This worker refuses to start: {exc}", err=True)
        raise typer.Exit(3) from None
    raise typer.Exit(code)


@cli.command()
def control(
    name: Annotated[
        str | None, typer.Option(help="Tells several control workers on a machine apart.")
    ] = None,
) -> None:
    """Run a control worker: it accepts requests, answers questions and sweeps.

    Example: python -m workers control
    """
    from workers.control import run_control

    settings = _load("control")
    try:
        code = run_control(settings, name=name)
    except SettingsError as exc:
        _refuse(exc)
    raise typer.Exit(code)


@cli.command()
def beat() -> None:
    """Run the clock: it asks for sweeps and power-state syncs. More than one does no harm.

    Example: python -m workers beat
    """
    from workers.app import build_app

    settings = _load("beat")
    app = build_app(settings, node=f"beat-{os.getpid()}")
    # Chores tell Flower nothing when they run, so they must not be announced either.
    app.conf.task_send_sent_event = False
    if settings.ready_file is not None:
        settings.ready_file.touch()
    app.Beat(loglevel="INFO", quiet=True).run()


@cli.command()
def flower(
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5555,
) -> None:
    """Run Flower, read-only.

    Example: python -m workers flower --port 5555
    """
    _load("flower")
    command = [
        *(sys.executable, "-m", "celery", "-A", "workers.flower_app", "flower"),
        *(f"--address={address}", f"--port={port}", "--enable_events=False", "--max_tasks=20000"),
        *("--read_only=True", "--natural_time=False", "--inspect_timeout=2000"),
        "--tasks_columns=name,uuid,state,kwargs,result,received,started,runtime,worker",
    ]
    os.chdir(ROOT)
    os.execv(sys.executable, command)  # noqa: S606 (no shell, fixed arguments)


@cli.command()
def migrate() -> None:
    """Bring the database to this release's schema.

    Example: python -m workers migrate
    """
    from alembic import command
    from alembic.config import Config

    settings = _load("migrate")
    os.environ["INNKEEPER_DATABASE_URL"] = settings.database_url.get_secret_value()
    command.upgrade(Config(str(ROOT / "alembic.ini")), "head")


@cli.command()
def sweep() -> None:
    """Sweep once, without beat and without a message.

    Example: python -m workers sweep
    """
    from workers.control import sweep_now

    typer.echo(sweep_now(_load("sweep")))


@cli.command()
def new_secret_key(
    path: Annotated[Path, typer.Argument(help="The file of the setting secret_key_file.")],
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Leave a file alone that is there.")
    ] = False,
) -> None:
    """Put a new private key first into a file, and print its public half.

    Example: python -m workers new-secret-key /etc/innkeeper/secret-keys
    """
    from workers.secret_keys import add_key

    try:
        keyring = add_key(path, only_if_missing=if_missing)
    except (SettingsError, OSError) as exc:
        typer.echo(f"No key was made: {exc}", err=True)
        raise typer.Exit(2) from None
    typer.echo(keyring.public_key)


@cli.command()
def secret_keys(
    path: Annotated[Path, typer.Argument(help="The file of the setting secret_key_file.")],
) -> None:
    """List the keys of a file: each one's fingerprint and public half, the newest first.

    Example: python -m workers secret-keys /etc/innkeeper/secret-keys
    """
    from workers.secret_keys import load_keyring

    try:
        keyring = load_keyring(path)
    except SettingsError as exc:
        _refuse(exc)
    for name, public_key in keyring.list_public():
        typer.echo(f"{name} {public_key}")


@cli.command()
def settings() -> None:
    """Show every setting, its value and where it came from.

    Example: python -m workers settings
    """
    try:
        loaded, origin = load_settings()
    except SettingsError as exc:
        _refuse(exc)
    table = Table("setting", "value", "from", "meaning")
    for name, field in Settings.model_fields.items():
        table.add_row(name, str(getattr(loaded, name)), origin[name], field.description or "")
    Console().print(table)


if __name__ == "__main__":
    cli()
