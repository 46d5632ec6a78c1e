"""What a guest sees of its machine where it did not say: decided once, the same for ever."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from innkeeper.errors import HostUnsuitable
from innkeeper.guest_parts import NetworkCard
from innkeeper.types import InstanceSpec
from virt.hypervisor import Hypervisor

REVISION = 1
# x86-64-v2 with AES: any Intel or AMD server of the last decade has it, so that a guest may go to
# any of them. Emulation has no such limits, and its own default is the fastest.
BASELINE_CPU: Mapping[str, str | None] = {"kvm": "Westmere", "qemu": None}


@dataclass(frozen=True, slots=True)
class GuestDefaults:
    """What a host gives guests that do not say what they want.

    Args:
        machine: a machine type of libvirt; an alias becomes the host's own versioned name.
        cpu_model: a named CPU model; None for the machine type's own.
        uefi_code_path: the UEFI firmware.
        uefi_template_path: its empty variable store.
    """

    machine: str = "pc"
    cpu_model: str | None = None
    uefi_code_path: Path = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
    uefi_template_path: Path = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


class CardAbi(BaseModel):
    """A network card as the guest sees it."""

    model_config = ConfigDict(frozen=True)

    mac: str
    model: Literal["virtio", "e1000", "e1000e", "rtl8139"] = "virtio"
    mtu: int | None = None


class GuestAbi(BaseModel):
    """What stands in ``instances.guest_abi``.

    Args:
        revision: of the devices that every guest has; 0 for guests of release 0.1. A release that
            changes them raises it, and goes on giving guests of an older one what they had.
        machine: a versioned machine type.
        cpu: a named CPU model; None for the machine type's own.
        uefi_code_path: the firmware; None for BIOS.
        uefi_template_path: what its variables were made of.
        nics: the network cards, in the guest's order.
    """

    model_config = ConfigDict(frozen=True)

    revision: int = 0
    machine: str
    cpu: str | None = None
    uefi_code_path: str | None = None
    uefi_template_path: str | None = None
    nics: tuple[CardAbi, ...] = ()

    @classmethod
    def from_row(cls, row: dict[str, Any], instance_id: UUID, spec: InstanceSpec) -> Self:
        """Return a guest's frozen facts; release 0.1 froze the machine and the CPU only."""
        if "nics" in row:
            return cls.model_validate(row)
        return cls.model_validate({**row, "nics": cards_of(instance_id, spec, revision=0)})


def nic_mac(instance_id: UUID, index: int, card: NetworkCard, *, revision: int = REVISION) -> str:
    """Return a card's MAC address: its own, or a local one made of the guest's id.

    Of 40 bits of it, because 24, as in release 0.1 behind QEMU's prefix, give two of some thousand
    guests the same address.
    """
    if card.mac is not None:
        return card.mac
    digest = hashlib.sha256(f"{instance_id}:nic{index}".encode()).digest()
    prefix, count = ("52:54:00", 3) if revision == 0 else ("52", 5)
    return ":".join([prefix, *(f"{byte:02x}" for byte in digest[:count])])


def cards_of(
    instance_id: UUID, spec: InstanceSpec, *, revision: int = REVISION
) -> tuple[CardAbi, ...]:
    """Return the cards of a spec with their MAC addresses."""
    return tuple(
        CardAbi(
            mac=nic_mac(instance_id, index, card, revision=revision), model=card.model, mtu=card.mtu
        )
        for index, card in enumerate(spec.nics)
    )


def freeze(
    instance_id: UUID, spec: InstanceSpec, defaults: GuestDefaults, aliases: Mapping[str, str]
) -> GuestAbi:
    """Decide what the spec leaves open.

    Args:
        instance_id: the guest's, which its MAC addresses are made of.
        spec: the guest that is wanted.
        defaults: the host's.
        aliases: the host's names of machine types → versioned names.
    """
    hardware = spec.hardware
    is_uefi = hardware.firmware == "uefi"
    return GuestAbi(
        revision=REVISION,
        machine=hardware.machine or aliases.get(defaults.machine, defaults.machine),
        cpu=hardware.cpu_model or defaults.cpu_model,
        uefi_code_path=str(defaults.uefi_code_path) if is_uefi else None,
        uefi_template_path=str(defaults.uefi_template_path) if is_uefi else None,
        nics=cards_of(instance_id, spec),
    )


def require_offered(hypervisor: Hypervisor, spec: InstanceSpec, abi: GuestAbi) -> None:
    """See that a host can give a guest what was frozen for it.

    Raises:
        HostUnsuitable: it has no such machine type, CPU model, graphics card or firmware, or no
            machine of so many vCPUs; with what it has instead.
    """
    name, machines = hypervisor.name, hypervisor.get_facts().machines
    most_vcpus = machines.get(abi.machine)
    if most_vcpus is None:
        families = ("pc-i440fx-", "pc-q35-")
        offered = sorted(machine for machine in machines if machine.startswith(families))
        raise _unsuitable(name, f"no machine type {abi.machine}", "machines", offered)
    if spec.vcpus > most_vcpus:
        lack = f"at most {most_vcpus} vCPUs for a {abi.machine}, not {spec.vcpus}"
        raise _unsuitable(name, lack, "most_vcpus", most_vcpus)
    if abi.cpu is not None:
        models = hypervisor.get_machine_facts(abi.machine).cpu_models
        if abi.cpu not in models:
            raise _unsuitable(name, f"no CPU model {abi.cpu}", "cpu_models", list(models))
    if spec.hardware.video == "virtio":
        video = hypervisor.get_machine_facts(abi.machine).video_models
        if "virtio" not in video:
            raise _unsuitable(name, "no graphics card virtio", "video_models", list(video))
    for path in (abi.uefi_code_path, abi.uefi_template_path):
        if path is not None and not Path(path).is_file():
            raise _unsuitable(name, f"no UEFI firmware file {path}", "path", path)


def _unsuitable(host: str, lack: str, key: str, offered: Any) -> HostUnsuitable:
    listing = f"; it offers {', '.join(offered)}" if isinstance(offered, list) else ""
    return HostUnsuitable(f"Host {host} has {lack}{listing}.", {"host": host, key: offered})
