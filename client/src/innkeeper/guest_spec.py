"""The guest that is wanted, as a tree that validates itself.

What passes here may still be refused by a host, but never because of a value that could not mean
anything.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from innkeeper.guest_parts import (
    BridgeName,
    DirectBoot,
    DiskFormat,
    ExtraDisk,
    GroupMembership,
    GuestData,
    Hardware,
    NetworkCard,
    XmlText,
)
from innkeeper.messages import HostName, Name, PoolName, Request, Sha256, Sha512
from innkeeper.migration_types import MigrationDefaults
from innkeeper.remote_source import parse_remote_source
from innkeeper.states import BootStage


class InstanceSpec(Request):
    """The guest that is wanted.

    Args:
        name: unique among the living; lower-case letters, digits and hyphens, at most 63.
        image: a ``file://`` or ``http(s)://`` URL, or an absolute path on the host; with
            ``delivery: instant`` an ``http(s)://`` or ``nbd://`` URL.
        sha256: digest of the image file; without one the bytes are taken on trust.
        sha512: the same by SHA-512; both may be given.
        image_format: the format the image claims to have; it is checked, never guessed.
        delivery: ``fetch`` boots from the host's cache; ``instant`` boots from the source at once
            and brings the image meanwhile.
        source_lost: with ``instant``, what becomes of a guest whose source is lost before it is
            independent of it: ``pause`` holds it and goes on when the source is back, ``fail``
            gives it up.
        vcpus: number of virtual CPUs.
        memory_mib: memory in MiB.
        disk_gib: size of the root disk in GiB; 0 takes the image's own virtual size.
        root_format: the root disk's format on the host: an overlay on the cached image, or a copy.
        preallocation: how much of the disks is claimed from the file system beforehand: ``off``,
            ``metadata`` (a qcow2 file's own tables), ``full``; a qcow2 root disk takes ``off``.
        disks: disks beside the root disk.
        direct_boot: a kernel that the host loads.
        host: the host to use; None lets the scheduler choose.
        group: a server group to join.
        pool: the storage pool of the disks that name none of their own, as named in the hosts'
            settings; of the root disk and the config drive always.
        wait: the boot stage that ends the spawn.
        boot_timeout_s: how long that stage may take from the start of the guest.
        bridge: an existing bridge for one NIC; short for one entry of ``network_cards``.
        network_cards: the network cards, in the guest's order.
        hardware: the machine that the guest sees.
        data: what the guest is told.
        power_policy: what to do when the guest goes off by itself.
        migration: what holds for this guest's migrations where a request says nothing.
        metadata: free text for the owner's use; at most 64 entries.
    """

    name: Name
    image: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Sha256 | None = None
    sha512: Sha512 | None = None
    image_format: DiskFormat = "qcow2"
    delivery: Literal["fetch", "instant"] = "fetch"
    source_lost: Literal["pause", "fail"] = "pause"
    vcpus: Annotated[int, Field(ge=1, le=512)] = 1
    memory_mib: Annotated[int, Field(ge=16, le=16 * 1024 * 1024)] = 256
    disk_gib: Annotated[int, Field(ge=0, le=64 * 1024)] = 0
    root_format: DiskFormat = "qcow2"
    preallocation: Literal["off", "metadata", "full"] = "off"
    disks: Annotated[tuple[ExtraDisk, ...], Field(max_length=16)] = ()
    direct_boot: DirectBoot | None = None
    host: HostName | None = None
    group: GroupMembership | None = None
    pool: PoolName = "local"
    wait: BootStage = BootStage.RUNNING
    boot_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120
    bridge: BridgeName | None = None
    network_cards: Annotated[tuple[NetworkCard, ...], Field(max_length=8)] = ()
    hardware: Hardware = Hardware()
    data: GuestData = GuestData()
    power_policy: Literal["sync", "stop", "restart", "alert"] = "stop"
    migration: MigrationDefaults = MigrationDefaults()
    metadata: Annotated[dict[XmlText, XmlText], Field(max_length=64)] = Field(default_factory=dict)

    @property
    def nics(self) -> tuple[NetworkCard, ...]:
        """The network cards, whichever way they were asked for."""
        if self.bridge is not None:
            return (NetworkCard(bridge=self.bridge), *self.network_cards)
        return self.network_cards

    @property
    def disks_gib(self) -> int:
        """GiB that all disks take at most, the root disk's own size included."""
        extra_mib = sum(disk.size_mib for disk in self.disks)
        return self.disk_gib + -(-extra_mib // 1024)

    @model_validator(mode="after")
    def _fit(self) -> Self:
        problems = [
            *self._problems_of_delivery(),
            *self._problems_of_disks(),
            *self._problems_of_hardware(),
            *self._problems_of_boot(),
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_delivery(self) -> list[str]:
        scheme = self.image.partition("://")[0].lower() if "://" in self.image else "file"
        if self.delivery == "fetch":
            return ["image: an nbd URL needs delivery: instant"] if scheme == "nbd" else []
        problems = []
        try:
            parse_remote_source(self.image)
        except ValueError as error:
            problems.append(f"image: delivery: instant cannot use this address: {error}")
        if self.image_format != "raw":
            problems.append("delivery: instant takes raw images only, whose bytes mean nothing")
        if self.sha256 is None and self.sha512 is None:
            problems.append("delivery: instant needs the image's digest")
        if self.root_format != "qcow2":
            problems.append("delivery: instant needs root_format: qcow2")
        if self.preallocation != "off":
            problems.append("delivery: instant needs preallocation: off")
        return problems

    def _problems_of_disks(self) -> list[str]:
        if self.preallocation != "off" and self.root_format == "qcow2":
            # QEMU does so only with a feature that image inspectors refuse.
            return ["preallocation: a qcow2 root disk is an overlay, which takes off only"]
        return []

    def _problems_of_hardware(self) -> list[str]:
        problems = []
        topology = self.hardware.topology
        if topology is not None:
            product = topology.sockets * topology.cores * topology.threads
            if product != self.vcpus:
                problems.append(f"hardware.topology: gives {product} vCPUs, not {self.vcpus}")
        macs = [card.mac for card in self.nics if card.mac is not None]
        if len(set(macs)) != len(macs):
            problems.append("network_cards: two have the same MAC address")
        return problems

    def _problems_of_boot(self) -> list[str]:
        needs_agent = any(file.via == "agent" for file in self.data.files)
        if needs_agent and BootStage(self.wait).rung < BootStage.AGENT.rung:
            return ["wait: files that go through the agent need wait: agent or cloud_init"]
        needs_channel = needs_agent or BootStage(self.wait) is BootStage.AGENT
        if needs_channel and not self.hardware.has_agent_channel:
            return ["hardware.has_agent_channel: the agent needs its channel"]
        return []
