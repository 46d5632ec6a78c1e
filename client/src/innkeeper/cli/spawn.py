"""The command that makes a guest."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from innkeeper.cli import spawn_flags as flags
from innkeeper.cli.follow import conclude
from innkeeper.cli.options import JsonOption, KeyOption, NoWaitOption, ReasonOption, TimeoutOption
from innkeeper.client import Innkeeper
from innkeeper.errors import InvalidRequest
from innkeeper.states import BootStage, PowerPolicy
from innkeeper.types import InstanceSpec, parse_request

MACHINE, DISKS, NETWORK = "Machine", "Image and disks", "Network"
TOLD, BOOT, PLACE = "What the guest is told", "Boot", "Where it runs"

ImageFormat = StrEnum("ImageFormat", {"QCOW2": "qcow2", "RAW": "raw"})
SourceLost = StrEnum("SourceLost", {"PAUSE": "pause", "FAIL": "fail"})
Preallocation = StrEnum("Preallocation", {"OFF": "off", "METADATA": "metadata", "FULL": "full"})
Bus = StrEnum("Bus", {"VIRTIO": "virtio", "SCSI": "scsi", "SATA": "sata", "IDE": "ide"})
Firmware = StrEnum("Firmware", {"BIOS": "bios", "UEFI": "uefi"})
Video = StrEnum("Video", {"VGA": "vga", "VIRTIO": "virtio", "NONE": "none"})
Watchdog = StrEnum(
    "Watchdog", {"RESET": "reset", "POWEROFF": "poweroff", "PAUSE": "pause", "NONE": "none"}
)
Drive = StrEnum(
    "Drive", {"NONE": "none", "CONFIG_2": "config-2", "NOCLOUD": "nocloud", "BOTH": "both"}
)

# Where a problem of the spec is to be mended on the command line; the longest one counts.
FLAG_OF = {
    "name": "NAME",
    "image": "--image",
    "sha256": "--sha256",
    "sha512": "--sha512",
    "image_format": "--image-format",
    "delivery": "--instant",
    "source_lost": "--source-lost",
    "disk_gib": "--disk-gib",
    "root_format": "--root-format",
    "preallocation": "--preallocation",
    "disks": "--disk",
    "pool": "--pool",
    "vcpus": "--vcpus",
    "memory_mib": "--memory-mib",
    "hardware.machine": "--machine",
    "hardware.firmware": "--firmware",
    "hardware.cpu_model": "--cpu-model",
    "hardware.topology": "--topology",
    "hardware.root_bus": "--root-bus",
    "hardware.boot_order": "--boot-order",
    "hardware.video": "--video",
    "hardware.watchdog": "--watchdog",
    "direct_boot.kernel": "--kernel",
    "direct_boot.kernel_sha256": "--kernel-sha256",
    "direct_boot.ramdisk": "--ramdisk",
    "direct_boot.ramdisk_sha256": "--ramdisk-sha256",
    "direct_boot.command_line": "--command-line",
    "bridge": "--bridge",
    "network_cards": "--nic",
    "data.drive": "--drive",
    "data.user_data": "--user-data",
    "data.ssh_keys": "--ssh-key",
    "data.files": "--file",
    "data.admin_password": "--admin-password-file",
    "wait": "--wait",
    "boot_timeout_s": "--boot-timeout-s",
    "host": "--host",
    "group": "--group",
    "power_policy": "--power-policy",
    "migration": "--migration",
    "metadata": "--metadata",
}


def _option(panel: str, help_: str, metavar: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=help_, metavar=metavar, rich_help_panel=panel)


def spawn(
    name: Annotated[
        str | None, typer.Argument(help="The new guest's name.", show_default=False)
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with fields of the spec, TOML or JSON; flags override it.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        _option(DISKS, "The image: an http(s), nbd or file URL, or a path on the hosts.", "F"),
    ] = None,
    sha256: Annotated[str | None, _option(DISKS, "The image file's digest.")] = None,
    sha512: Annotated[str | None, _option(DISKS, "The same by SHA-512.")] = None,
    image_format: Annotated[
        ImageFormat | None, _option(DISKS, "The image's format. Default: qcow2.")
    ] = None,
    instant: Annotated[
        bool,
        typer.Option(
            "--instant",
            help="Boot from the source at once and bring the image meanwhile.",
            rich_help_panel=DISKS,
        ),
    ] = False,
    source_lost: Annotated[
        SourceLost | None,
        _option(DISKS, "With --instant: what a lost source does. Default: pause."),
    ] = None,
    disk_gib: Annotated[
        int | None, _option(DISKS, "Root disk in GiB. Default: the image's own size.")
    ] = None,
    root_format: Annotated[
        ImageFormat | None, _option(DISKS, "The root disk's format. Default: qcow2.")
    ] = None,
    root_bus: Annotated[Bus | None, _option(DISKS, "Its bus. Default: virtio.")] = None,
    preallocation: Annotated[
        Preallocation | None, _option(DISKS, "Claimed beforehand. Default: off.")
    ] = None,
    disk: Annotated[
        list[str] | None,
        _option(
            DISKS,
            "Another disk: 2048:kind=data,fs=ext4,label=L,format=raw,bus=scsi,serial=S,pool=P. "
            "Kinds: data, ephemeral, swap. Repeatable.",
            "MIB[:KEY=…]",
        ),
    ] = None,
    pool: Annotated[
        str | None, _option(DISKS, "The pool of the disks that name none. Default: local.")
    ] = None,
    vcpus: Annotated[int | None, _option(MACHINE, "Virtual CPUs. Default: 1.")] = None,
    memory_mib: Annotated[int | None, _option(MACHINE, "Memory in MiB. Default: 256.")] = None,
    machine: Annotated[
        str | None, _option(MACHINE, "A versioned type: pc-q35-7.2. Default: the host's.", "TYPE")
    ] = None,
    firmware: Annotated[Firmware | None, _option(MACHINE, "Default: bios.")] = None,
    cpu_model: Annotated[
        str | None, _option(MACHINE, "A CPU model of libvirt. Default: the host's.", "MODEL")
    ] = None,
    topology: Annotated[
        str | None, _option(MACHINE, "sockets=1,cores=2,threads=2.", "KEY=…")
    ] = None,
    video: Annotated[Video | None, _option(MACHINE, "Graphics card. Default: vga.")] = None,
    watchdog: Annotated[
        Watchdog | None, _option(MACHINE, "What it does when it bites. Default: none.")
    ] = None,
    boot_order: Annotated[
        str | None, _option(BOOT, "Of disk, cdrom, network. Default: disk.", "A,B")
    ] = None,
    kernel: Annotated[
        str | None, _option(BOOT, "A kernel that the host loads; as for --image.", "F")
    ] = None,
    kernel_sha256: Annotated[str | None, _option(BOOT, "Its digest.")] = None,
    ramdisk: Annotated[str | None, _option(BOOT, "Its initial RAM disk.", "F")] = None,
    ramdisk_sha256: Annotated[str | None, _option(BOOT, "That one's digest.")] = None,
    command_line: Annotated[str | None, _option(BOOT, "The kernel's command line.")] = None,
    wait: Annotated[
        BootStage | None, _option(BOOT, "How far to wait for the boot. Default: running.")
    ] = None,
    boot_timeout_s: Annotated[
        float | None, _option(BOOT, "How long the boot may take. Default: 120.")
    ] = None,
    bridge: Annotated[
        str | None, _option(NETWORK, "A bridge of the host for one card. Default: no network.")
    ] = None,
    nic: Annotated[
        list[str] | None,
        _option(
            NETWORK,
            "A card: bridge=br0,mac=M,model=virtio,address=10.0.0.5/24,gateway=10.0.0.1,"
            "nameserver=N,mtu=1500. Repeatable, and so are address and nameserver.",
            "KEY=…",
        ),
    ] = None,
    drive: Annotated[
        Drive | None, _option(TOLD, "Its layout. Default: config-2 if there is something on it.")
    ] = None,
    ssh_key: Annotated[
        list[Path] | None, _option(TOLD, "A file with public keys. Repeatable.", "FILE")
    ] = None,
    user_data: Annotated[Path | None, _option(TOLD, "A file for cloud-init.", "FILE")] = None,
    file: Annotated[
        list[str] | None,
        _option(
            TOLD,
            "A file for the guest: /etc/motd=./motd,mode=0644,owner=root:root,via=agent. "
            "Repeatable.",
            "PATH=FILE[,KEY=…]",
        ),
    ] = None,
    seal: Annotated[
        bool,
        typer.Option(
            "--seal",
            help="Encrypt user data and files, so that only workers can read them.",
            rich_help_panel=TOLD,
        ),
    ] = False,
    admin_password_file: Annotated[
        Path | None, _option(TOLD, "A file with the administrator's password; sent sealed.", "FILE")
    ] = None,
    ask_admin_password: Annotated[
        bool,
        typer.Option(
            "--ask-admin-password", help="Ask for it here; sent sealed.", rich_help_panel=TOLD
        ),
    ] = False,
    host: Annotated[str | None, _option(PLACE, "The host. Default: the best one.")] = None,
    group: Annotated[
        str | None,
        _option(
            PLACE,
            "A server group; affinity, anti-affinity, soft-affinity or soft-anti-affinity.",
            "NAME:POLICY",
        ),
    ] = None,
    power_policy: Annotated[
        PowerPolicy | None, typer.Option(help="What to do when the guest goes off. Default: stop.")
    ] = None,
    migration: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=…", help="For its migrations: max_downtime_ms=150,on_timeout=pause."
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Free text. Repeatable.")
    ] = None,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new guest of an image and boot it."""
    base = flags.read_spec(spec) if spec is not None else {}
    given = _given(
        name=name,
        image=_absolute(image),
        sha256=sha256,
        sha512=sha512,
        image_format=image_format,
        delivery="instant" if instant else None,
        source_lost=source_lost,
        disk_gib=disk_gib,
        root_format=root_format,
        preallocation=preallocation,
        disks=[flags.parse_disk(each) for each in disk] if disk else None,
        pool=pool,
        vcpus=vcpus,
        memory_mib=memory_mib,
        hardware=_given(
            machine=machine,
            firmware=firmware,
            cpu_model=cpu_model,
            topology=flags.parse_topology(topology) if topology else None,
            root_bus=root_bus,
            boot_order=boot_order.split(",") if boot_order else None,
            video=video,
            watchdog=watchdog,
        ),
        direct_boot=_given(
            kernel=_absolute(kernel),
            kernel_sha256=kernel_sha256,
            ramdisk=_absolute(ramdisk),
            ramdisk_sha256=ramdisk_sha256,
            command_line=command_line,
        ),
        wait=wait,
        boot_timeout_s=boot_timeout_s,
        bridge=bridge,
        network_cards=[flags.parse_nic(each) for each in nic] if nic else None,
        host=host,
        group=flags.parse_group(group) if group else None,
        power_policy=power_policy,
        migration=flags.parse_migration(migration) if migration else None,
        metadata=flags.parse_metadata(metadata) if metadata else None,
    )
    with Innkeeper() as inn:
        told = _given(
            drive=drive,
            ssh_keys=flags.read_ssh_keys(ssh_key) if ssh_key else None,
            user_data=flags.read_user_data(user_data, inn.seal if seal else None)
            if user_data
            else None,
            files=[flags.read_file(each, inn.seal if seal else None) for each in file]
            if file
            else None,
            admin_password=_admin_password(inn, admin_password_file, ask=ask_admin_password),
        )
        fields = flags.overlaid(base, {**given, **_given(data=told)})
        _add_drive(fields)
        _check(fields, spec)
        operation = inn.spawn(fields, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)


def _given(**fields: Any) -> dict[str, Any]:
    # What was not given is left to the control worker, whose defaults may be newer than ours.
    return {name: value for name, value in fields.items() if value is not None and value != {}}


def _absolute(image: str | None) -> str | None:
    return image if image is None or "://" in image else str(Path(image).absolute())


def _admin_password(inn: Innkeeper, path: Path | None, *, ask: bool) -> str | None:
    if path is not None and ask:
        raise flags.wrong("--ask-admin-password", "and --admin-password-file exclude each other")
    if path is not None:
        return inn.seal(flags.read_secret(path, "--admin-password-file"))
    if ask:
        prompt = "The administrator's password"
        return inn.seal(typer.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True))
    return None


def _add_drive(fields: dict[str, Any]) -> None:
    """What is told needs a drive; whoever names none gets the usual one."""
    data = fields.get("data")
    if not isinstance(data, Mapping) or "drive" in data:
        return
    files = data.get("files") or ()
    on_drive = any(isinstance(f, Mapping) and f.get("via") != "agent" for f in files)
    if on_drive or any(data.get(key) for key in ("user_data", "ssh_keys", "admin_password")):
        fields["data"] = {**data, "drive": "config-2"}


def _check(fields: dict[str, Any], spec: Path | None) -> None:
    """Check the fields here already, where a problem can be said in the words of the flags.

    Raises:
        InvalidRequest: with every problem.
    """
    try:
        parse_request(InstanceSpec, fields)
    except InvalidRequest as error:
        problems = [
            {"path": _flag_of(path), "message": message}
            for problem in error.details.get("problems", [])
            for path, message in _plain(problem["path"], problem["message"])
        ]
        listing = "; ".join(f"{problem['path']}: {problem['message']}" for problem in problems)
        source = "" if spec is None else f" Fields that no flag gives stand in {spec}."
        hint = f"See innkeeper spawn --help.{source}"
        raise InvalidRequest(
            f"The request is not valid ({listing}).", {"problems": problems, "hint": hint}
        ) from None


def _plain(path: str, message: str) -> list[tuple[str, str]]:
    """Return a problem by its field, also where one check of the whole spec has found several."""
    said = message.removeprefix("Value error, ")
    if said == message or path != "(request)":
        return [(path, said)]
    found = [part.partition(": ") for part in said.split("; ")]
    return [(field, text) if colon else (path, field) for field, colon, text in found]


def _flag_of(path: str) -> str:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        flag = FLAG_OF.get(".".join(parts[:length]))
        if flag is not None:
            rest = parts[length:]
            return f"{flag} ({'.'.join(rest)})" if rest else flag
    return path
