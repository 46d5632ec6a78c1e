"""A guest's config drive, built from its rows alone, so that any host builds the same bytes."""

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from innkeeper.errors import HostUnsuitable, InvalidRequest
from innkeeper.types import InstanceSpec
from models.disks import find_drive
from models.instance import Instance
from models.session import Database
from tasks.context import StepContext
from tasks.guest_abi import cards_of
from tasks.guest_data import open_guest_data, wants_drive
from tasks.keyring import Keyring
from virt.config_drive import DriveContents, build_config_drive
from virt.domain_rules import is_q35
from virt.guest_network import CardFacts
from virt.identity import sync_directory

FILE = "config-drive.iso"
IDE_TARGETS = ("hdc", "hdd", "hdb", "hda")
SATA_TARGETS = tuple(f"sd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True)
class Drive:
    """A built drive.

    Args:
        image: the ISO's bytes.
        keys: fingerprints of the keys that its secrets needed.
    """

    image: bytes
    keys: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The image's digest."""
        return hashlib.sha256(self.image).hexdigest()


def choose_slot(machine: str, taken: Collection[str]) -> tuple[str, str]:
    """Choose the bus and the target of a CD-ROM.

    Args:
        machine: the machine type; q35 has no IDE.
        taken: targets of the guest's disks.

    Returns:
        Bus and target.

    Raises:
        InvalidRequest: no place is free.
    """
    bus, targets = ("sata", SATA_TARGETS) if is_q35(machine) else ("ide", IDE_TARGETS)
    for target in targets:
        if target not in taken:
            return bus, target
    message = f"the machine has no free {bus} port for the config drive"
    raise InvalidRequest(
        f"The guest cannot be built: {message}.",
        {"problems": [{"path": "spec.disks", "message": message}]},
    )


def build_drive(instance: Instance, keyring: Keyring) -> Drive:
    """Build a guest's drive.

    Raises:
        SecretUnreadable: this host's keys do not open the guest's secrets.
        InvalidRequest: it would be too large.
    """
    spec = InstanceSpec.model_validate(instance.spec)
    data = open_guest_data(keyring, spec.data)
    if spec.data.drive == "none":
        raise RuntimeError(f"guest {instance.id} wants no drive")
    cards = tuple(
        CardFacts(
            mac=seen.mac,
            addresses=card.addresses,
            gateway=card.gateway,
            nameservers=card.nameservers,
            mtu=card.mtu,
        )
        for card, seen in zip(spec.nics, cards_of(instance.id, spec), strict=True)
    )
    contents = DriveContents(
        layout=spec.data.drive,
        instance_id=instance.id,
        hostname=instance.name,
        ssh_keys=spec.data.ssh_keys,
        admin_password=data.admin_password,
        user_data=data.user_data,
        files=data.drive_files,
        metadata=spec.metadata,
        cards=cards,
    )
    return Drive(build_config_drive(contents), data.keys)


def write_drive(path: Path, image: bytes) -> bool:
    """Write a drive for root alone, unless just that is there; a reader sees all of it or none.

    Returns:
        Whether it was written now.
    """
    if path.exists() and path.read_bytes() == image:
        return False
    for half_made in path.parent.glob(f".{path.name}.*"):
        half_made.unlink(missing_ok=True)
    own = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(image)
        file.flush()
        os.fsync(file.fileno())
    own.replace(path)
    sync_directory(path.parent)
    return True


def rebuild_drive(context: StepContext) -> Drive | None:
    """Build the drive of a step's guest; see ``rebuild_drive_of``."""
    return rebuild_drive_of(
        context.instance, context.database, context.keyring, host=context.host.name
    )


def rebuild_drive_of(
    instance: Instance, database: Database, keyring: Keyring, *, host: str
) -> Drive | None:
    """Build a guest's drive as it was built at its spawn; None for a guest without one.

    Args:
        instance: the guest.
        database: the records.
        keyring: this host's keys.
        host: this host's name.

    Raises:
        SecretUnreadable: this host's keys do not open the guest's secrets.
        HostUnsuitable: it has come out differently.
    """
    if not wants_drive(instance.spec):
        return None
    row = database.run(lambda session: find_drive(session, instance.id))
    drive = build_drive(instance, keyring)
    recorded = row.facts.get("sha256") if row is not None else None
    if recorded != drive.sha256:
        raise HostUnsuitable(
            f"Host {host} builds another config drive than the guest has: sha256 "
            f"{drive.sha256[:12]}…, recorded is {str(recorded)[:12]}….",
            {
                "host": host,
                "expected": recorded,
                "actual": drive.sha256,
                "hint": "Bring this host's worker to the release that the guest was spawned with.",
            },
        )
    return drive
