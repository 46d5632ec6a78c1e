"""Migrations with TLS: nothing readable on the wire, and bad certificates are found beforehand."""

import datetime
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import InvalidRequest, PrecheckFailed
from lab.certificates import Authority
from lab.handle import Lab
from tests.waiting import PATIENCE_S, wait_until
from tests.wire import sniffed
from tests.workflow.conftest import domains_on
from tests.workflow.guest_shell import run_in_guest

pytestmark = pytest.mark.lab

MARK = "a-secret-that-nobody-may-read-on-its-way"


def pki_of(lab: Lab, host: str) -> Path:
    return lab.layout.host(host) / "etc-pki"


@contextmanager
def changed(lab: Lab, host: str) -> Iterator[Path]:
    """Give a host's certificates to the body to spoil, and put them right afterwards."""
    pki = pki_of(lab, host)
    kept = pki.with_name("etc-pki-kept")
    shutil.copytree(pki, kept)
    try:
        yield pki
    finally:
        # The directory itself is mounted on the host.
        shutil.copytree(kept, pki, dirs_exist_ok=True)
        shutil.rmtree(kept)


def failures_of(client: Innkeeper, name: str, dst: str) -> list[str]:
    with pytest.raises(PrecheckFailed) as caught:
        client.migrate(name, dst=dst, tls=True).wait(120)
    failures = caught.value.details["failures"]
    assert {failure["check"] for failure in failures} == {"tls"}
    assert all(failure["hint"] for failure in failures)
    return [failure["message"] for failure in failures]


def client_sees(client: Innkeeper, name: str) -> bool:
    return next(host.is_up and host.is_enabled for host in client.hosts() if host.name == name)


def address_of(lab: Lab, host: str) -> str:
    return lab.description.host(host).address


def test_memory_and_disks_are_readable_on_the_wire_only_without_tls(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, **linux_guest).wait(120)
    write = (
        f"yes {MARK} | head -c 1048576 >/tmp/mark;"
        " dd if=/tmp/mark of=/dev/vda bs=1M seek=8 conv=notrunc,fsync 2>/dev/null"
    )
    run_in_guest(lab, a, name, write)
    for src, dst, tls in ((a, b, True), (b, a, False)):
        holder = lab.description.host(src).holder_pid
        with sniffed(holder, "eth0", address_of(lab, dst), MARK) as wire:
            moved = client.migrate(name, dst=dst, tls=tls).wait(120)
        assert moved["tls"] is tls
        qemu = wire.to_qemu()
        assert len(qemu) == 2, "memory to one port, the disk to another"
        assert all(flow.bytes > 1 << 20 for flow in qemu.values()), wire.flows
        if tls:
            assert [flow.marked for flow in wire.flows.values()] == [0] * len(wire.flows)
            assert (16514 in wire.flows, 16509 in wire.flows) == (True, False)
        else:
            assert all(flow.marked > 0 for flow in qemu.values()), wire.flows
            assert (16514 in wire.flows, 16509 in wire.flows) == (False, True)


def test_bad_certificates_are_named_before_anything_is_done(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, **boot_guest).wait(120)
    ours = Authority.ensure(lab.layout.tls, "unused")
    theirs = Authority.make("another authority")
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)

    with changed(lab, b) as pki:
        (pki / "qemu/server-key.pem").unlink()
        (pki / "libvirt/servercert.pem").write_text("nothing")
        told = failures_of(client, name, b)
    assert [message.split(": ", 1)[0] for message in told] == [b, b]
    assert "/etc/pki/libvirt/servercert.pem holds no certificate" in told[0]
    assert "/etc/pki/qemu/server-key.pem cannot be read: No such file" in told[1]

    with changed(lab, b) as pki, changed(lab, a) as src_pki:
        certificate, key = ours.issue(b, address_of(lab, b), not_after=yesterday)
        (pki / "qemu/server-cert.pem").write_bytes(certificate)
        (pki / "qemu/server-key.pem").write_bytes(key)
        certificate, key = ours.issue(a, address_of(lab, a), not_after=yesterday)
        (src_pki / "libvirt/clientcert.pem").write_bytes(certificate)
        (src_pki / "libvirt/private/clientkey.pem").write_bytes(key)
        expired = failures_of(client, name, b)
    assert [message.rsplit(" expired on", 1)[0] for message in expired] == [
        f"{b}: /etc/pki/qemu/server-cert.pem",
        f"{a}: /etc/pki/libvirt/clientcert.pem",
    ]

    with changed(lab, b) as pki:
        certificate, _ = ours.issue("elsewhere", "192.0.2.1")
        (pki / "qemu/server-cert.pem").write_bytes(certificate)
        told = failures_of(client, name, b)
    assert f"made out to elsewhere, 192.0.2.1, not to {address_of(lab, b)}" in told[0]
    assert "server-key.pem is not the key of /etc/pki/qemu/server-cert.pem" in told[1]

    with changed(lab, b) as pki:
        certificate, key = theirs.issue(b, address_of(lab, b))
        (pki / "qemu/ca-cert.pem").write_bytes(theirs.pem)
        (pki / "qemu/server-cert.pem").write_bytes(certificate)
        (pki / "qemu/server-key.pem").write_bytes(key)
        told = failures_of(client, name, b)
    assert len(told) == 2
    assert "/etc/pki/qemu/ca-cert.pem does not vouch for the certificate" in told[0]
    assert "is not signed by the authority that QEMU of" in told[1]

    assert domains_on(lab, a)[name] == "running"
    assert name not in domains_on(lab, b)
    assert client.migrate(name, dst=b, tls=True).wait(120)["tls"] is True


def test_a_daemon_that_still_shows_an_old_certificate_is_found_by_its_handshake(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, **boot_guest).wait(120)
    theirs = Authority.make("another authority")

    def restart() -> None:
        lab.kill(f"libvirtd:{b}")
        lab.start(f"libvirtd:{b}")
        wait_until(lambda: client_sees(client, b), what=f"{b} takes guests again")

    try:
        with changed(lab, b) as pki:
            certificate, key = theirs.issue(b, address_of(lab, b))
            (pki / "CA/cacert.pem").write_bytes(theirs.pem)
            (pki / "libvirt/servercert.pem").write_bytes(certificate)
            (pki / "libvirt/private/serverkey.pem").write_bytes(key)
            restart()
        told = failures_of(client, name, b)
    finally:
        restart()
    assert len(told) == 1
    assert "the certificate of libvirtd there is refused here" in told[0]
    assert client.migrate(name, dst=b, tls=True).wait(120)["host"] == b


def test_settings_that_demand_tls_refuse_plaintext(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, **boot_guest).wait(120)

    def restart(rule: str, *roles: str) -> None:
        for role in roles:
            lab.kill(role)
            lab.start(role, env={"INNKEEPER_MIGRATION_TLS": rule})

    try:
        restart("required", "control", f"worker:{a}")
        with pytest.raises(InvalidRequest, match="migrations without TLS are refused here"):
            client.migrate(name, dst=b, tls=False).wait(PATIENCE_S)
        assert client.instance(name).operation_id is None
        assert client.migrate(name, dst=b).wait(120)["tls"] is True
        # A host obeys its own setting, whatever control has let pass.
        restart("allowed", "control")
        restart("off", f"worker:{a}")
        restart("required", f"worker:{b}")
        with pytest.raises(PrecheckFailed, match="migrations without TLS are refused"):
            client.migrate(name, dst=a, tls=False).wait(120)
        assert any("migration_tls off" in message for message in failures_of(client, name, a))
    finally:
        restart("allowed", "control", f"worker:{a}", f"worker:{b}")
