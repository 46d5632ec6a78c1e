"""Private Postgres and Redis of a lab."""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.processes import ProcessTable

DATABASE = "innkeeper"
_POSTGRES_MOUNT = Path("/run/postgresql")
"""Where the supervisor's private mount namespace shows the data: user postgres can reach it there,
whatever the permissions on the way to the lab's directory are."""


@dataclass(frozen=True)
class Endpoints:
    """Addresses and credentials of a lab's services."""

    address: str
    postgres_port: int
    redis_port: int
    flower_port: int
    password: str

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the application database."""
        return (
            f"postgresql+psycopg://{DATABASE}:{self.password}"
            f"@{self.address}:{self.postgres_port}/{DATABASE}"
        )

    def redis_url(self, database: int) -> str:
        """Return the URL of one Redis database."""
        return f"redis://{self.address}:{self.redis_port}/{database}"

    @property
    def flower_url(self) -> str:
        """Where Flower shows its pages."""
        return f"http://127.0.0.1:{self.flower_port}"


def choose_endpoints(address: str, previous: Endpoints | None) -> Endpoints:
    """Choose free ports, the previous ones if they are still free."""
    old = previous or Endpoints(address, 5432, 6379, 5555, secrets.token_urlsafe(16))
    return Endpoints(
        address,
        _free_port(address, old.postgres_port),
        _free_port(address, old.redis_port),
        _free_port("127.0.0.1", old.flower_port),
        old.password,
    )


def _free_port(address: str, preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise LabError(f"no free TCP port on {address}")


def _postgres_binaries() -> Path:
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4])
    )
    if not versions:
        raise LabError("no Postgres server in /usr/lib/postgresql; run scripts/setup")
    return versions[-1].parent


def _as_postgres(argv: Sequence[str]) -> list[str]:
    user = ["--reuid=postgres", "--regid=postgres", "--init-groups"]
    return ["setpriv", *user, "--inh-caps=-all", *argv]


async def create_cluster(table: ProcessTable, directory: Path, endpoints: Endpoints) -> None:
    """Make the data directory reachable for user postgres and initialise it when it is new."""
    directory.mkdir(exist_ok=True)
    shutil.chown(directory, "postgres", "postgres")
    directory.chmod(0o700)
    _POSTGRES_MOUNT.mkdir()
    await table.run("mount", "--bind", str(directory), str(_POSTGRES_MOUNT))
    data = directory / "data"
    # The lab's lock says that no server of ours is alive; the number in the file, from a PID
    # namespace that is gone, may by now belong to another process.
    (data / "postmaster.pid").unlink(missing_ok=True)
    initialised = directory / "initialised"
    if not initialised.exists():
        # An initdb that was cut short leaves a directory it would refuse to continue in.
        shutil.rmtree(data, ignore_errors=True)
        password = directory / "password"
        password.write_text(endpoints.password)
        shutil.chown(password, "postgres", "postgres")
        initdb = [str(_postgres_binaries() / "initdb"), "--no-sync", "--encoding=UTF8"]
        initdb += ["--locale=C", f"--username={DATABASE}", "--auth=scram-sha-256"]
        initdb += [f"--pwfile={_POSTGRES_MOUNT}/password", f"--pgdata={_POSTGRES_MOUNT}/data"]
        await table.run(*_as_postgres(initdb), timeout_s=180, cwd=Path("/"))
        password.unlink()
        with (data / "pg_hba.conf").open("a") as access:
            access.write("host all all samenet scram-sha-256\n")
        initialised.touch()


def postgres_command(endpoints: Endpoints) -> list[str]:
    """Return the command line of Postgres, to be run in the supervisor's mount namespace."""
    settings = {
        "listen_addresses": endpoints.address,
        "port": endpoints.postgres_port,
        "unix_socket_directories": _POSTGRES_MOUNT,
        "max_connections": 300,
        "shared_buffers": "64MB",
        "log_line_prefix": "%m [%p] %a ",
    }
    options = [f"-c{name}={value}" for name, value in settings.items()]
    postgres = str(_postgres_binaries() / "postgres")
    return _as_postgres([postgres, f"-D{_POSTGRES_MOUNT}/data", *options])


async def create_database(table: ProcessTable, endpoints: Endpoints) -> None:
    """Create the application's database when it is not there yet."""
    psql = str(_postgres_binaries() / "psql")
    url = endpoints.database_url.replace("+psycopg", "").removesuffix(DATABASE) + "postgres"
    options = ["--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--set=name={DATABASE}"]
    query = (
        "SELECT format('CREATE DATABASE %I', :'name')"
        " WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec\n"
    )
    await table.run(psql, *options, url, stdin=query)


def postgres_ready_command(endpoints: Endpoints) -> list[str]:
    """Return a command that succeeds when Postgres takes connections."""
    where = [f"--host={endpoints.address}", f"--port={endpoints.postgres_port}"]
    return [str(_postgres_binaries() / "pg_isready"), "--quiet", *where]


def create_redis_directory(directory: Path) -> None:
    """Make the directory of Redis's append-only file."""
    directory.mkdir(exist_ok=True)


def redis_command(directory: Path, endpoints: Endpoints) -> list[str]:
    """Return the command line of Redis."""
    settings = {
        "bind": endpoints.address,
        "port": str(endpoints.redis_port),
        "protected-mode": "no",
        "dir": str(directory),
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
    }
    return ["redis-server", *(word for k, v in settings.items() for word in (f"--{k}", v))]
