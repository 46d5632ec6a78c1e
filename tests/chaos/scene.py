"""What there is of one guest: its record, its domains, its files, its claims."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from lab.handle import Lab
from tests.chaos.virsh import virsh

_RECORD = """
    SELECT i.state, i.power_state, i.host, i.operation_id,
           ARRAY(SELECT c.host FROM claims c WHERE c.instance_id = i.id ORDER BY 1) AS claims
      FROM instances i WHERE i.id = %s
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """One look at a guest.

    Args:
        state: as recorded.
        host: as recorded.
        held_by: the operation that holds the guest.
        claims: the hosts on which it has reserved something.
        domains: host and state of each domain of its name.
        files: ``<host or shared>:<path>`` of each file that bears its id.
    """

    state: str
    host: str | None
    held_by: UUID | None
    claims: tuple[str, ...]
    domains: tuple[tuple[str, str], ...]
    files: tuple[str, ...]

    def differs(self, other: "Scene") -> str:
        """Return in words what differs from another look; empty when nothing does."""
        return "; ".join(
            f"{name}: {was!r} → {now!r}"
            for name in ("state", "host", "held_by", "claims", "domains", "files")
            if (was := getattr(other, name)) != (now := getattr(self, name))
        )


def look_at(
    lab: Lab, connection: psycopg.Connection[dict[str, Any]], name: str, instance_id: UUID
) -> Scene:
    """Look at a guest everywhere."""
    row = connection.execute(_RECORD, (instance_id,)).fetchone()
    assert row is not None, f"guest {name} has no record"
    return Scene(
        state=row["state"],
        host=row["host"],
        held_by=row["operation_id"],
        claims=tuple(row["claims"]),
        domains=tuple(
            (host, state) for host in lab.hosts if (state := _domain_state(lab, host, name))
        ),
        files=tuple(list_files(lab, str(instance_id))),
    )


def is_gone(scene: Scene) -> bool:
    """Tell whether nothing but a closed record is left."""
    return scene.state == "deleted" and not (
        scene.held_by or scene.claims or scene.domains or scene.files
    )


def is_settled_on(scene: Scene, host: str, state: str) -> bool:
    """Tell whether the guest is on one host alone, in a state, with its own files and claim."""
    domain_state = "running" if state == "active" else "shut off"
    disks = [file for file in scene.files if file.endswith("/root.qcow2")]
    return (
        (scene.state, scene.host, scene.held_by) == (state, host, None)
        and scene.claims == (host,)
        and scene.domains == ((host, domain_state),)
        and len(disks) == 1
        and all(file.startswith((f"{host}:", "shared:")) for file in scene.files)
    )


def list_files(lab: Lab, identifier: str) -> list[str]:
    """Return every file that bears an id, on every host and on the shared pool."""
    places = [(host, lab.layout.host(host) / "innkeeper") for host in lab.hosts]
    places.append(("shared", lab.layout.shared))
    found: list[str] = []
    for place, root in places:
        for directory in (root, root / "instances", root / "consoles"):
            found += (
                f"{place}:{file.relative_to(root)}"
                for near in directory.glob(f"*{identifier}*")
                for file in _with_content(near)
            )
    return sorted(found)


def console_path(lab: Lab, host: str, instance_id: UUID) -> Path:
    """Return a guest's console log as it is seen from outside its host."""
    return lab.layout.host(host) / "innkeeper" / "consoles" / f"{instance_id}.log"


def _with_content(path: Path) -> list[Path]:
    return [path, *path.rglob("*")] if path.is_dir() else [path]


def _domain_state(lab: Lab, host: str, name: str) -> str | None:
    for line in virsh(lab, host, "list", "--all").splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[1] == name:
            return words[2].strip()
    return None
