"""The lab keeps its own promises: real hosts, honest faults, and nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import libvirt
import libvirt_qemu
import psycopg
import pycdlib
import pytest
import redis

from lab import protocol
from lab.errors import LabError
from lab.guest import bootsector, images
from lab.guest import kernel as kernels
from lab.handle import Lab
from lab.layout import REPOSITORY, cache_directory
from tests.waiting import PATIENCE_S, quickest, wait_until

BOOT_S = 120
"""Generous: other tests may share the machine. A guest alone boots in three seconds."""


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """Short, unlike pytest's: it ends up in socket paths."""
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def bed() -> Iterator[Lab]:
    with (
        temporary_directory() as directory,
        Lab.up(directory, hosts=2, workers=False, owner_pid=os.getpid()) as lab,
    ):
        yield lab


@pytest.fixture(autouse=True)
def quiet_libvirt() -> None:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Guest:
    """A domain of the bed, with its console."""

    def __init__(self, lab: Lab, host: str, name: str, image: str, devices: str = "") -> None:
        self.name = name
        self.console = lab.layout.host(host) / "innkeeper" / f"{name}.console"
        disk = f"/var/lib/innkeeper/instances/{name}.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, disk]
        lab.exec(host, create)
        self.connection = libvirt.open(lab.libvirt_uri(host))
        self.domain = self.connection.createXML(
            f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>192</memory>
            <os><type machine='pc'>hvm</type></os><features><acpi/></features><devices>
            <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
              <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
            <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
            <serial type='file'><source path='/var/lib/innkeeper/{name}.console'/></serial>
            <channel type='unix'>
              <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
            {devices}</devices></domain>"""
        )

    def said(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.said(), timeout_s=BOOT_S, what=f"{text!r} on the console")

    def beats(self) -> list[int]:
        return [int(beat) for beat in re.findall(r"^hb (\d+)", self.said(), re.MULTILINE)]

    def agent(self, command: str, **arguments: object) -> object:
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, request, 15, 0))["return"]

    def agent_answers(self) -> bool:
        try:
            return self.agent("guest-ping") == {}
        except libvirt.libvirtError:
            return False

    def is_gone(self) -> bool:
        return self.name not in [domain.name() for domain in self.connection.listAllDomains()]


@contextlib.contextmanager
def guest(lab: Lab, host: str, name: str, image: str, devices: str = "") -> Iterator[Guest]:
    one = Guest(lab, host, name, image, devices)
    try:
        yield one
    finally:
        if not one.is_gone():
            one.domain.destroy()
        one.connection.close()


def reaches(lab: Lab, host: str, target: str, port: int) -> bool:
    """Tell whether a connection comes about; a cut path takes the whole two seconds."""
    return any(_connects(lab, host, target, port) for _ in range(2))


def _connects(lab: Lab, host: str, target: str, port: int) -> bool:
    connect = ["timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{target}/{port}"]
    return lab.exec(host, connect, check=False).returncode == 0


def test_the_hosts_are_different_machines(bed: Lab) -> None:
    uuids = set()
    for host in bed.hosts:
        connection = libvirt.open(bed.libvirt_uri(host))
        assert connection.getHostname() == host
        uuids.add(re.search("<uuid>(.*)</uuid>", connection.getCapabilities())[1])
        filters = {nwfilter.name() for nwfilter in connection.listAllNWFilters()}
        assert "clean-traffic" in filters
        connection.close()
    assert uuids == {host.uuid for host in bed.description.hosts}
    assert len(uuids) == 2


def test_the_variables_lead_to_the_services(bed: Lab) -> None:
    env = bed.env()
    with psycopg.connect(env["INNKEEPER_DATABASE_URL"].replace("+psycopg", "")) as database:
        assert database.execute("SHOW fsync").fetchone() == ("on",)
    assert redis.from_url(env["INNKEEPER_BROKER_URL"]).config_get("maxmemory-policy") == {
        "maxmemory-policy": "noeviction"
    }
    for name in ("IMAGE", "BOOT_IMAGE"):
        path = env[f"INNKEEPER_LAB_{name}"].removeprefix("file://")
        digest = bed.exec("hv-b", ["sha256sum", path]).stdout.split()[0]
        assert digest == env[f"INNKEEPER_LAB_{name}_SHA256"]
        assert "Read-only" in bed.exec("hv-b", ["touch", path], check=False).stderr


def test_a_cut_blocks_and_healing_restores(bed: Lab) -> None:
    assert reaches(bed, "hv-a", "hv-b", 16509)
    bed.cut("hv-a", "hv-b")
    assert not reaches(bed, "hv-a", "hv-b", 16509)
    assert not reaches(bed, "hv-b", "hv-a", 16509)
    assert reaches(bed, "hv-a", "services", bed.description.endpoints.postgres_port)
    bed.heal("hv-a", "hv-b")
    assert reaches(bed, "hv-a", "hv-b", 16509)


def test_a_cut_can_be_of_one_port_and_from_the_services(bed: Lab) -> None:
    endpoints = bed.description.endpoints
    bed.cut("hv-a", "services", port=endpoints.redis_port)
    assert not reaches(bed, "hv-a", "services", endpoints.redis_port)
    assert reaches(bed, "hv-a", "services", endpoints.postgres_port)
    assert reaches(bed, "hv-b", "services", endpoints.redis_port)
    bed.heal()
    assert reaches(bed, "hv-a", "services", endpoints.redis_port)


def test_a_cut_of_nobody_says_who_there_is(bed: Lab) -> None:
    with pytest.raises(LabError, match="no 'hv-z'; known: hv-a, hv-b, services"):
        bed.cut("hv-a", "hv-z")


def test_the_linux_guest_boots_answers_and_obeys_the_power_button(bed: Lab) -> None:
    with guest(bed, "hv-a", "linux", bed.description.images.guest) as linux:
        wait_until(linux.agent_answers, timeout_s=BOOT_S, what="guest-ping")
        uuid = linux.domain.UUIDString()
        linux.wait_for(f"innkeeper-guest: booted uuid={uuid} hostname=innkeeper-guest")
        linux.wait_for(f"hb 2 {uuid}")
        started = linux.agent("guest-exec", path="/bin/dirty", arg=["10", "16"])
        status = linux.agent("guest-exec-status", pid=started["pid"])
        assert status == {"exited": False}
        linux.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        wait_until(linux.is_gone, what="power off by ACPI")


def test_the_linux_guest_obeys_its_agent(bed: Lab) -> None:
    with guest(bed, "hv-b", "obedient", bed.description.images.guest) as linux:
        wait_until(linux.agent_answers, timeout_s=BOOT_S, what="guest-ping")
        linux.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        wait_until(linux.is_gone, what="power off by the agent")


@pytest.mark.parametrize("bus", ["ide", "virtio"])
def test_the_linux_guest_reads_its_config_drive(bed: Lab, bus: str) -> None:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="config-2", rock_ridge="1.09")
    iso.add_directory("/OPENSTACK", rr_name="openstack")
    iso.add_directory("/OPENSTACK/LATEST", rr_name="latest")
    files = {
        "meta_data.json": b'{"uuid": "u", "hostname": "named-by-drive"}',
        "user_data": b"#!/bin/sh\necho user data ran\n",
    }
    for number, (name, content) in enumerate(files.items()):
        path = f"/OPENSTACK/LATEST/F{number}.;1"
        iso.add_fp(BytesIO(content), len(content), path, rr_name=name)
    drive = bed.layout.host("hv-a") / "innkeeper" / f"config-{bus}.iso"
    iso.write(str(drive))
    iso.close()
    kind, target = ("cdrom", "hda") if bus == "ide" else ("disk", "vdb")
    device = (
        f"<disk type='file' device='{kind}'><source file='/var/lib/innkeeper/{drive.name}'/>"
        f"<target dev='{target}' bus='{bus}'/><readonly/></disk>"
    )
    with guest(bed, "hv-a", f"named-{bus}", bed.description.images.guest, device) as linux:
        linux.wait_for("hostname=named-by-drive")
        linux.wait_for("user data ran")
        linux.wait_for("Cloud-init v.")


def test_a_guest_outlives_its_libvirtd(bed: Lab) -> None:
    with guest(bed, "hv-a", "survivor", bed.description.images.boot) as boot:
        boot.wait_for(bootsector.MARKER)
        bed.kill("libvirtd:hv-a")
        assert not bed.role("libvirtd:hv-a")["running"]
        beats = len(boot.beats())
        wait_until(lambda: len(boot.beats()) >= beats + 2, what="two more heartbeats")
        bed.start("libvirtd:hv-a")
        boot.connection.close()
        boot.connection = libvirt.open(bed.libvirt_uri("hv-a"))
        boot.domain = boot.connection.lookupByName("survivor")
        assert boot.beats() == list(range(len(boot.beats())))
        bed.kill("qemu:hv-a:survivor")
        wait_until(boot.is_gone, what="libvirt notices that QEMU died")


def test_a_destroy_does_not_wait_for_a_zombie(bed: Lab) -> None:
    names = itertools.count()

    def destroy() -> float:
        with guest(bed, "hv-a", f"brief-{next(names)}", bed.description.images.boot) as boot:
            boot.wait_for(bootsector.MARKER)
            started = time.monotonic()
            boot.domain.destroy()
            return time.monotonic() - started

    assert quickest(destroy, limit_s=1.2) < 1.2


@pytest.mark.parametrize("role", ["postgres", "redis"])
def test_a_killed_service_starts_again(bed: Lab, role: str) -> None:
    before = bed.role(role)["pid"]
    after_kill = bed.kill(role)
    assert (after_kill["running"], after_kill["exit_code"]) == (False, -signal.SIGKILL)
    after_start = bed.start(role)
    assert after_start["running"]
    assert after_start["pid"] != before


def test_an_unknown_role_says_which_there_are(bed: Lab) -> None:
    with pytest.raises(LabError, match="no role 'worker:hv-a' in this lab; it has: postgres"):
        bed.kill("worker:hv-a")


def test_a_guest_moves_between_the_hosts(bed: Lab) -> None:
    with guest(bed, "hv-a", "traveller", bed.description.images.boot) as boot:
        boot.wait_for("hb 1")
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2"]
        disk = "/var/lib/innkeeper/instances/traveller.qcow2"
        bed.exec("hv-b", [*create, "-b", bed.description.images.boot, disk])
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER
        boot.domain.migrateToURI3(
            "qemu+tcp://hv-b/system", {}, flags | libvirt.VIR_MIGRATE_NON_SHARED_INC
        )
        assert boot.is_gone()
        there = libvirt.open(bed.libvirt_uri("hv-b"))
        there.lookupByName("traveller").destroy()
        there.close()


def test_equal_inputs_give_equal_images() -> None:
    kernel = kernels.ensure(cache_directory(), lambda _: None)
    with temporary_directory() as directory:
        for kind, build in {
            "guest": lambda target: images.build_guest(kernel, target),
            "boot": images.build_boot,
        }.items():
            first, second = directory / f"{kind}-1.qcow2", directory / f"{kind}-2.qcow2"
            build(first)
            time.sleep(2.1)  # FAT counts time in steps of two seconds
            build(second)
            assert first.read_bytes() == second.read_bytes()


def test_the_boot_sector_is_a_disk_with_a_partition() -> None:
    sector = bootsector.sector()
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"
    assert sector[446] == 0x80


class Traces:
    """Everything by which a lab can be noticed on the machine."""

    def __init__(self, lab: Lab) -> None:
        self._directory = lab.layout.root
        self._uplink = Path(f"/sys/class/net/innlab{lab.description.subnet}")
        holders = [host.holder_pid for host in lab.description.hosts]
        self._namespaces = {
            os.readlink(f"/proc/{pid}/ns/{kind}")
            for pid in holders
            for kind in ("net", "mnt", "uts", "pid")
        }
        assert self._uplink.exists()
        assert len(self._users()) > len(holders)

    def left(self) -> list[str]:
        traces = [f"process {pid}" for pid in self._users()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        traces += [mount for mount in mounts if str(self._directory) in mount]
        return traces + ([str(self._uplink)] if self._uplink.exists() else [])

    def _users(self) -> list[int]:
        """Return the processes in one of the lab's namespaces; zombies are in none."""
        users = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                kinds = ("net", "mnt", "uts", "pid")
                if self._namespaces & {os.readlink(entry / "ns" / kind) for kind in kinds}:
                    users.append(int(entry.name))
        return users


def supervisor_pid(lab: Lab) -> int:
    with protocol.connect(lab.layout.control_socket) as connection:
        return protocol.peer_pid(connection)


def test_a_crashed_lab_leaves_nothing_and_comes_up_again() -> None:
    with temporary_directory() as directory:
        lab = Lab.up(directory, hosts=2, workers=False, owner_pid=os.getpid())
        traces = Traces(lab)
        boot = Guest(lab, "hv-b", "orphan", lab.description.images.boot)
        boot.wait_for(bootsector.MARKER)
        os.kill(supervisor_pid(lab), signal.SIGKILL)
        wait_until(lambda: not traces.left(), what=f"clean machine: {traces.left()}")
        with pytest.raises(protocol.NotRunningError, match="scripts/lab up") as crashed:
            lab.status()
        assert "(it ended by a signal" in str(crashed.value)
        lab.down()
        with Lab.up(directory, hosts=2, workers=False, owner_pid=os.getpid()) as again:
            assert again.description.endpoints.password == lab.description.endpoints.password
            assert all(role["running"] for role in again.status()["roles"])
            traces = Traces(again)
        assert traces.left() == []


def test_a_lab_that_hangs_is_taken_down_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.launch._GRACEFUL_DOWN_S", 0.5)
    with temporary_directory() as directory:
        lab = Lab.up(directory, hosts=1, workers=False, owner_pid=os.getpid())
        traces = Traces(lab)
        os.kill(supervisor_pid(lab), signal.SIGSTOP)
        lab.down()
        wait_until(lambda: not traces.left(), what=f"clean machine: {traces.left()}")


def test_a_lab_ends_with_its_owner() -> None:
    with temporary_directory() as directory:
        owner = subprocess.Popen(["sleep", "infinity"])
        command = [sys.executable, "-m", "lab", "up", "--dir", str(directory), "--hosts", "1"]
        command += ["--no-workers", "--owner-pid", str(owner.pid)]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        traces = Traces(Lab.attach(directory))
        owner.kill()  # and stays a zombie until the end of the test
        wait_until(lambda: not traces.left(), what=f"clean machine: {traces.left()}")
        owner.wait()
        log = (directory / "logs" / "supervisor.log").read_text()
        assert f"going down: the owner has gone: process {owner.pid} (sleep infinity)" in log


def test_a_signal_takes_the_lab_down_in_order_and_is_named() -> None:
    with temporary_directory() as directory:
        lab = Lab.up(directory, hosts=1, workers=False, owner_pid=os.getpid())
        traces = Traces(lab)
        os.kill(supervisor_pid(lab), signal.SIGTERM)
        wait_until(lambda: not traces.left(), what=f"clean machine: {traces.left()}")
        lab.down()
        assert "going down: received SIGTERM" in lab.layout.log("supervisor").read_text()


def test_whoever_takes_a_lab_down_is_named() -> None:
    with temporary_directory() as directory:
        with Lab.up(directory, hosts=1, workers=False, owner_pid=os.getpid()) as lab:
            pass
        log = lab.layout.log("supervisor").read_text()
        assert f"going down: asked by process {os.getpid()} (" in log


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON at all\n",
        b"[]\n",
        b'{"verb": "status"}\n',
        b'{"verb": "kill", "arguments": {"role": "redis", "signal": "nonsense"}}\n',
        b'{"verb": "start", "arguments": {"role": ["redis"], "env": {}}}\n',
        b"x" * (5 << 20) + b"\n",
    ],
    ids=["text", "list", "incomplete", "signal", "role", "endless"],
)
def test_a_bad_request_is_answered_and_ends_nothing(bed: Lab, line: bytes) -> None:
    before = supervisor_pid(bed)
    with protocol.connect(bed.layout.control_socket) as connection:
        connection.settimeout(PATIENCE_S)
        # It may answer and hang up before it has read the whole of a line too long.
        with contextlib.suppress(ConnectionError):
            connection.sendall(line)
        with contextlib.suppress(ConnectionError), connection.makefile("rb") as stream:
            assert b"unexpected in the lab's supervisor" in stream.readline()
    assert supervisor_pid(bed) == before
    assert all(role["running"] for role in bed.status()["roles"])


def test_a_caller_may_leave_before_its_answer(bed: Lab) -> None:
    before = supervisor_pid(bed)
    bed.kill("redis")
    request = {"verb": "start", "arguments": {"role": "redis", "env": {}}, "caller": "nobody"}
    for _ in range(3):
        with protocol.connect(bed.layout.control_socket) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
    bed.start("redis")
    assert supervisor_pid(bed) == before


def test_the_lab_outlives_a_libvirtd_killed_again_and_again_under_its_clients(bed: Lab) -> None:
    before = supervisor_pid(bed)
    virsh = f"while :; do virsh -q -c '{bed.libvirt_uri('hv-a')}' list --all; done"
    inside = bed.host_command("hv-a", ["bash", "-c", "while :; do virsh -q list --all; done"])
    clients = [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in (["bash", "-c", virsh], inside)
    ]
    try:
        for _ in range(12):
            assert not bed.kill("libvirtd:hv-a")["running"]
            assert bed.start("libvirtd:hv-a")["running"]
    finally:
        for client in clients:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
    assert supervisor_pid(bed) == before


def test_a_second_lab_in_the_same_directory_is_refused(bed: Lab) -> None:
    with pytest.raises(LabError, match=r"running in .* already"):
        Lab.up(bed.layout.root, hosts=1, workers=False)
    assert all(role["running"] for role in bed.status()["roles"])


def test_two_labs_run_side_by_side(bed: Lab) -> None:
    with (
        temporary_directory() as directory,
        Lab.up(directory, hosts=1, workers=False, owner_pid=os.getpid()) as other,
    ):
        assert other.description.subnet != bed.description.subnet
        assert other.description.hosts[0].uuid != bed.description.hosts[0].uuid
        port = bed.description.endpoints.redis_port
        assert not reaches(other, "hv-a", bed.description.endpoints.address, port)


def test_a_directory_with_other_files_is_refused() -> None:
    with temporary_directory() as directory:
        (directory / "thesis.tex").write_text("years of work")
        with pytest.raises(LabError, match="not made by a lab"):
            Lab.up(directory, hosts=1, workers=False, fresh=True)
        assert (directory / "thesis.tex").exists()


def test_a_directory_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(LabError, match="shorter --dir"):
        Lab.up(Path("/var/tmp") / ("x" * 80), hosts=1, workers=False)


def test_the_command_line_explains_itself() -> None:
    command = [sys.executable, "-m", "lab"]
    usage = subprocess.run(
        [*command, "--help"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    verbs = ["up", "down", "status", "env", "kill", "start", "cut", "heal", "logs", "exec", "image"]
    for verb in verbs:
        assert re.search(rf"^ *{verb} +\w", usage, re.MULTILINE), f"{verb} is not explained"
