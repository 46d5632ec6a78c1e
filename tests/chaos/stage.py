"""A lab to be set on fire: roles started with the right environment, a client that waits."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError, NotFound
from lab.errors import LabError
from lab.handle import Lab
from tests.chaos.faults.bent_redis import BentRedis
from tests.crash_directory import VARIABLE, CrashDirectory

INNKEEPERS_ROLES = ("worker:", "control", "beat")
LEASE_S = 5.0


@dataclass
class Stage:
    """What faults strike and what is checked afterwards.

    Args:
        lab: the hosts and all processes.
        crash: arms the crash points of all processes.
        client: a client that lives through everything.
        redis: what stands between Redis and everybody else; None when nothing does.
        env: variables for Innkeeper's own roles, over the lab's.
    """

    lab: Lab
    crash: CrashDirectory
    client: Innkeeper
    redis: BentRedis | None = None
    env: dict[str, str] = field(default_factory=dict)

    @property
    def broker_url(self) -> str:
        """The broker as Innkeeper's processes and the client see it."""
        return self.env.get("INNKEEPER_BROKER_URL", self.lab.env()["INNKEEPER_BROKER_URL"])

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL of the lab's Postgres."""
        return self.lab.env()["INNKEEPER_DATABASE_URL"]

    def start(self, role: str) -> dict[str, Any]:
        """Start a role of the lab; nothing happens if it runs."""
        is_innkeepers = role.startswith(INNKEEPERS_ROLES)
        return self.lab.start(role, env=self.env if is_innkeepers else None)

    def kill(self, role: str) -> None:
        """Kill a role's process; nothing happens if it is dead."""
        with suppress(LabError):
            self.lab.kill(role)

    def is_running(self, role: str) -> bool:
        """Tell whether the role's process lives."""
        return bool(self.lab.role(role)["running"])

    def revive(self) -> list[str]:
        """Start every role that is dead, and return which were; services first."""
        dead = [role["role"] for role in self.lab.status()["roles"] if not role["running"]]
        for role in dead:
            self.start(role)
        return dead

    def boot_guest(self) -> dict[str, Any]:
        """Return the fields of a spawn of the smallest guest."""
        env = self.lab.env()
        return {
            "image": env["INNKEEPER_LAB_BOOT_IMAGE"],
            "sha256": env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"],
            "memory_mib": 64,
        }

    def linux_guest(self) -> dict[str, Any]:
        """Return the fields of a spawn of a real Linux, waited for until its agent answers."""
        env = self.lab.env()
        return {
            "image": env["INNKEEPER_LAB_IMAGE"],
            "sha256": env["INNKEEPER_LAB_IMAGE_SHA256"],
            "memory_mib": 256,
            "wait": "agent",
        }

    def ensure_deleted(self, name: str) -> None:
        """Delete a guest if there is one of that name."""
        with suppress(NotFound):
            self.client.delete(name).wait(60)


@contextmanager
def set_stage(*, hosts: int, bent: bool, lease_s: float = LEASE_S) -> Iterator[Stage]:
    """Bring up a lab with workers whose crash points can be armed; take it down afterwards.

    Args:
        hosts: how many hypervisors.
        bent: let all messages pass through a Redis that can be bent.
        lease_s: length of a step's lease.
    """
    with tempfile.TemporaryDirectory(prefix="innkeeper-chaos-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        crash_path = Path(directory) / "crash"
        env = {
            VARIABLE: str(crash_path),
            "INNKEEPER_LEASE_S": str(lease_s),
            "INNKEEPER_HYDRATION_DELAY_S": "3600",
        }
        with Lab.up(
            Path(directory), hosts=hosts, workers=True, owner_pid=os.getpid(), env=env
        ) as lab:
            crash = CrashDirectory(crash_path)
            if bent:
                with bend_stage(lab, crash) as stage:
                    yield stage
            else:
                yield from _play(Stage(lab, crash, _client(lab, {})))


@contextmanager
def bend_stage(
    lab: Lab, crash: CrashDirectory, *, env: Mapping[str, str] | None = None
) -> Iterator[Stage]:
    """Let all messages of a running lab pass through a Redis that can be bent.

    Whoever uses the lab afterwards calls `straighten_out` first.

    Args:
        lab: the hosts and all processes.
        crash: arms the crash points of all processes.
        env: more variables for Innkeeper's own roles.
    """
    endpoints = lab.description.endpoints
    with BentRedis(
        endpoints.address, endpoints.redis_port, listen_address=endpoints.address, seed=1
    ) as redis:
        bending = {**(env or {}), "INNKEEPER_BROKER_URL": redis.url(0)}
        _restart_roles(lab, bending)
        yield from _play(Stage(lab, crash, _client(lab, bending), redis, bending))


def straighten_out(lab: Lab) -> None:
    """Let a lab's roles look for the true Redis again."""
    _restart_roles(lab, {})


def _play(stage: Stage) -> Iterator[Stage]:
    try:
        yield stage
    finally:
        stage.crash.clear()
        stage.lab.heal()
        with suppress(InnkeeperError):
            stage.client.close()


def _client(lab: Lab, env: dict[str, str]) -> Innkeeper:
    urls = lab.env() | env
    return Innkeeper(urls["INNKEEPER_BROKER_URL"], urls["INNKEEPER_RESULT_URL"])


def _restart_roles(lab: Lab, env: dict[str, str]) -> None:
    """Kill and start Innkeeper's roles, side by side."""

    def restart(role: str) -> None:
        with suppress(LabError):
            lab.kill(role)
        lab.start(role, env=env)

    roles = [role["role"] for role in lab.status()["roles"]]
    with ThreadPoolExecutor() as pool:
        list(pool.map(restart, [role for role in roles if role.startswith(INNKEEPERS_ROLES)]))
