"""Hypothesis strategies for every valid description of a domain."""

import string

from hypothesis import strategies as st

from virt.domain_rules import IDE_UNITS, TARGET_PREFIX, is_q35
from virt.domain_spec import (
    CdromSpec,
    DiskSpec,
    DomainSpec,
    KernelSpec,
    NicSpec,
    RemoteSource,
    TopologySpec,
    UefiSpec,
)

xml_text = st.text(
    st.characters(
        min_codepoint=32,
        max_codepoint=0x2FFFF,
        exclude_categories=("Cs",),
        exclude_characters="\x7f\ufffe\uffff\U0001fffe\U0001ffff",
    ),
    max_size=40,
)
paths = xml_text.map(lambda text: "/d" + text.replace("..", "__"))
serials = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)
machines = st.sampled_from(["pc-i440fx-7.2", "pc-i440fx-2.11", "pc-q35-7.2", "pc-q35-6.0"])
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
macs = st.from_regex(r"52:54:00(:[0-9a-f]{2}){3}", fullmatch=True)
addresses = st.ip_addresses(v=4).map(str)

remotes = st.one_of(
    st.builds(RemoteSource, protocol=st.just("nbd"), name=xml_text, socket=paths),
    st.builds(
        RemoteSource,
        protocol=st.just("nbd"),
        name=xml_text,
        host=addresses,
        port=st.none() | st.integers(1, 65535),
    ),
    st.builds(
        RemoteSource,
        protocol=st.sampled_from(["http", "https"]),
        name=xml_text,
        host=st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,2}", fullmatch=True),
        port=st.none() | st.integers(1, 65535),
        query=st.none() | xml_text,
        verifies_certificate=st.booleans(),
        readahead_bytes=st.none() | st.integers(1, 2**20),
        timeout_s=st.none() | st.integers(1, 600),
    ),
)


def _target(bus: str, index: int) -> str:
    return TARGET_PREFIX[bus] + string.ascii_lowercase[index]


@st.composite
def disks(draw: st.DrawFn, bus: str, index: int) -> DiskSpec:
    format_ = draw(st.sampled_from(["qcow2", "raw"]))
    backing = draw(st.none() | paths) if format_ == "qcow2" else None
    backing_format = draw(st.sampled_from(["qcow2", "raw"]))
    may_be_remote = format_ == "qcow2" and not (backing and backing_format == "raw")
    remote = draw(st.none() | remotes) if may_be_remote else None
    is_readonly = draw(st.booleans()) and bus in ("virtio", "scsi")
    cache = draw(st.sampled_from(["none", "writeback", "writethrough", "directsync", "unsafe"]))
    io = draw(st.sampled_from([None, "threads", "native", "io_uring"]))
    return DiskSpec(
        target=_target(bus, index),
        path=draw(paths),
        format=format_,
        backing_path=backing,
        backing_format=backing_format,
        remote_backing=remote,
        bus=bus,  # type: ignore[arg-type]
        cache=cache,
        io="threads" if io == "native" and cache not in ("none", "directsync") else io,
        discard=draw(st.sampled_from(["unmap", "ignore"])),
        detect_zeroes=draw(st.sampled_from([None, "off", "on", "unmap"])),
        error_policy=draw(st.sampled_from([None, "stop", "report", "ignore", "enospace"])),
        rerror_policy=draw(st.sampled_from([None, "stop", "report", "ignore"])),
        copies_on_read=draw(st.booleans()) and not is_readonly and bool(backing or remote),
        serial=draw(st.none() | serials),
        is_readonly=is_readonly,
    )


@st.composite
def specs(draw: st.DrawFn) -> DomainSpec:
    machine = draw(machines)
    buses = ["virtio", "scsi", "sata"] if is_q35(machine) else ["virtio", "scsi", "sata", "ide"]
    wanted = draw(st.lists(st.sampled_from(buses), max_size=4))
    made = [draw(disks(bus, index)) for index, bus in enumerate(wanted)]
    cdroms = []
    if draw(st.booleans()) and wanted.count("ide") < IDE_UNITS:
        bus = draw(st.sampled_from(["sata", "scsi"] if is_q35(machine) else ["ide", "sata"]))
        cdroms = [CdromSpec(target=_target(bus, 9), path=draw(st.none() | paths), bus=bus)]
    nics = draw(
        st.lists(
            st.builds(
                NicSpec,
                mac=macs,
                bridge=st.from_regex(r"[a-zA-Z0-9_.-]{1,15}", fullmatch=True),
                filter_name=st.just("clean-traffic"),
                addresses=st.lists(addresses, max_size=3).map(tuple),
                model=st.sampled_from(["virtio", "e1000", "e1000e", "rtl8139"]),
                mtu=st.none() | st.integers(576, 65535),
            ),
            max_size=3,
            unique_by=lambda nic: nic.mac,
        )
    )
    topology = draw(
        st.none()
        | st.builds(
            TopologySpec,
            sockets=st.integers(1, 4),
            cores=st.integers(1, 16),
            threads=st.integers(1, 2),
        )
    )
    vcpus = draw(st.integers(1, 512))
    if topology is not None:
        vcpus = topology.sockets * topology.cores * topology.threads
    return DomainSpec(
        instance_id=draw(st.uuids()),
        name=draw(names),
        epoch=draw(st.integers(0, 2**62)),
        operation_id=draw(st.uuids()),
        vcpus=vcpus,
        memory_mib=draw(st.integers(16, 2**24)),
        machine=machine,
        domain_type=draw(st.sampled_from(["qemu", "kvm"])),
        cpu=draw(st.none() | st.sampled_from(["qemu64", "EPYC", "Skylake-Server"])),
        topology=topology,
        uefi=draw(
            st.none() | st.builds(UefiSpec, code_path=paths, template_path=paths, nvram_path=paths)
        ),
        kernel=draw(
            st.none()
            | st.builds(
                KernelSpec,
                kernel_path=paths,
                ramdisk_path=st.none() | paths,
                command_line=xml_text,
            )
        ),
        disks=tuple(made),
        cdroms=tuple(cdroms),
        nics=tuple(nics),
        console_log_path=draw(st.none() | paths),
        has_agent_channel=draw(st.booleans()),
        has_rng=draw(st.booleans()),
        video=draw(st.sampled_from(["vga", "virtio", "none"])),
        has_vnc=draw(st.booleans()),
        has_balloon=draw(st.booleans()),
        has_panic_device=draw(st.booleans()),
        watchdog=draw(st.sampled_from([None, "reset", "poweroff", "pause", "none"])),
        metadata=tuple(draw(st.dictionaries(xml_text, xml_text, max_size=3)).items()),
    )
