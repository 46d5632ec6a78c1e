"""What guests are told, seen from inside them: by a drive, after a move too, and by the agent."""

import base64
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from nacl.public import PrivateKey
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import FileInjectionFailed, InvalidRequest, PrecheckFailed, SecretUnreadable
from innkeeper.sealing import encode_public_key, seal
from lab.handle import Lab
from models.session import Database
from tests.waiting import wait_until
from tests.workflow.conftest import assert_nothing_left, domains_on, files_of
from tests.workflow.guest_inside import describe_inside, read_inside, run_inside

pytestmark = pytest.mark.lab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7 someone@somewhere"
SCRIPT = "#!/bin/sh\necho ran >/run/user-data-ran\n"


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def told(client: Innkeeper, layout: str, password: str, secret: bytes) -> dict[str, Any]:
    return {
        "drive": layout,
        "user_data": SCRIPT,
        "ssh_keys": [KEY],
        "admin_password": client.seal(password),
        "files": [
            {"path": "/etc/motd", "content": encoded(b"good morning\n")},
            {
                "path": "/srv/deep/token",
                "content": client.seal(secret),
                "owner": "www-data:www-data",
                "mode": "0400",
            },
        ],
    }


def assert_told(lab: Lab, host: str, name: str, password: str, secret: bytes) -> None:
    # The lab's guest starts its agent first.
    wait_until(
        lambda: "cloud-init-done" in run_inside(lab, host, name, "ls", "/run").split(),
        what="the guest has read its drive",
    )
    assert run_inside(lab, host, name, "hostname").strip() == name
    assert read_inside(lab, host, name, "/root/.ssh/authorized_keys").decode().strip() == KEY
    assert describe_inside(lab, host, name, "/root/.ssh/authorized_keys") == "root root 600"
    assert read_inside(lab, host, name, "/etc/motd") == b"good morning\n"
    assert describe_inside(lab, host, name, "/etc/motd") == "root root 644"
    assert read_inside(lab, host, name, "/srv/deep/token") == secret
    assert describe_inside(lab, host, name, "/srv/deep/token") == "www-data www-data 400"
    stored = read_inside(lab, host, name, "/etc/shadow").decode().split(":")[1]
    salt = stored.split("$")[2]
    hashed = ["openssl", "passwd", "-6", "-salt", salt, "-stdin"]
    assert subprocess.check_output(hashed, input=password, text=True).strip() == stored
    assert read_inside(lab, host, name, "/run/user-data-ran") == b"ran\n"


def drive_on(lab: Lab, host: str, instance_id: str) -> tuple[bytes, str]:
    """The drive's bytes, and its owner and mode."""
    path = f"/var/lib/innkeeper/instances/{instance_id}/config-drive.iso"
    done = subprocess.run(lab.host_command(host, ["cat", path]), capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    described = lab.exec(host, ["stat", "-c", "%U %a", path]).stdout.strip()
    return done.stdout, described


def identify(image: bytes, directory: Path) -> str:
    path = directory / "drive.iso"
    path.write_bytes(image)
    return subprocess.run(
        ["blkid", "-p", "-o", "export", str(path)], capture_output=True, text=True, check=True
    ).stdout


def test_a_guest_is_told_everything_and_still_is_after_a_move(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any], tmp_path: Path
) -> None:
    password, secret = f"pw-{uuid.uuid4().hex}", os.urandom(3000)
    operation = client.spawn(
        name=name,
        **linux_guest,
        data=told(client, "config-2", password, secret),
    )
    guest = operation.wait(120)
    src, dst = guest["host"], next(host for host in lab.hosts if host != guest["host"])
    assert [step.name for step in operation.view().steps].count("build_config_drive") == 1
    assert_told(lab, src, name, password, secret)
    image, described = drive_on(lab, src, guest["id"])
    assert described == "root 600"
    assert {"LABEL=config-2", "TYPE=iso9660"} <= set(identify(image, tmp_path).splitlines())
    assert run_inside(lab, src, name, "findfs", "LABEL=config-2").strip() == "/dev/sr0"

    client.migrate(name, dst=dst, storage="block").wait(180)

    assert drive_on(lab, dst, guest["id"]) == (image, "root 600")
    assert files_of(lab, src, guest["id"]) == []
    run_inside(lab, dst, name, "mount", "-t", "iso9660", "-o", "ro", "/dev/sr0", "/mnt")
    assert read_inside(lab, dst, name, "/mnt/openstack/latest/user_data") == SCRIPT.encode()
    client.delete(name).wait(60)
    assert files_of(lab, dst, guest["id"]) == []


@pytest.mark.parametrize("layout", ["nocloud", "both"])
def test_the_other_layouts_are_read_as_well(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any], layout: str
) -> None:
    password, secret = f"pw-{uuid.uuid4().hex}", os.urandom(300)
    data = told(client, layout, password, secret)
    cards = [{"bridge": "br0", "addresses": ["10.99.0.5/24"], "gateway": "10.99.0.1"}]
    guest = client.spawn(name=name, **linux_guest, data=data, network_cards=cards).wait(120)
    assert_told(lab, guest["host"], name, password, secret)
    addresses = run_inside(lab, guest["host"], name, "ip", "-4", "-o", "addr", "show", "eth0")
    assert "10.99.0.5/24" in addresses
    assert "169.254." not in addresses
    routes = run_inside(lab, guest["host"], name, "ip", "route")
    assert "default via 10.99.0.1" in routes


def test_the_agent_writes_files_with_their_owner_and_mode(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    large, token = os.urandom(150_000), os.urandom(50)
    files = [
        {"path": "/srv/new/large", "content": encoded(large), "via": "agent", "mode": "0640"},
        {
            "path": "/srv/$(touch hit)'; -token",
            "content": client.seal(token),
            "owner": "www-data:root",
            "mode": "0400",
            "via": "agent",
        },
        {"path": "/etc/passwd.empty", "content": "", "via": "agent"},
    ]
    operation = client.spawn(name=name, **linux_guest, data={"files": files})
    host = operation.wait(120)["host"]
    assert [step.name for step in operation.view().steps][-1] == "inject_files"
    assert read_inside(lab, host, name, files[0]["path"]) == large
    assert describe_inside(lab, host, name, files[0]["path"]) == "root root 640"
    assert read_inside(lab, host, name, files[1]["path"]) == token
    assert describe_inside(lab, host, name, files[1]["path"]) == "www-data root 400"
    assert read_inside(lab, host, name, files[2]["path"]) == b""
    assert run_inside(lab, host, name, "ls", "-A", "/srv").split("\n")[:-1] == [
        "$(touch hit)'; -token",
        "new",
    ]


def test_a_file_that_the_guest_refuses_undoes_the_spawn(
    client: Innkeeper, lab: Lab, records: Database, name: str, linux_guest: dict[str, Any]
) -> None:
    files = [{"path": "/srv/a", "content": "", "owner": "nobody-here", "via": "agent"}]
    operation = client.spawn(name=name, **linux_guest, data={"files": files})
    with pytest.raises(FileInjectionFailed, match="nobody-here") as caught:
        operation.wait(120)
    assert caught.value.step == "inject_files"
    assert caught.value.effect == "rolled_back"
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_what_cannot_be_opened_is_refused_before_anything_is_written(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    strange = encode_public_key(bytes(PrivateKey.generate().public_key))
    data = {"drive": "config-2", "admin_password": seal(strange, "hush")}
    with pytest.raises(SecretUnreadable) as caught:
        client.spawn(name=name, **boot_guest, data=data).wait(60)
    assert caught.value.details["path"] == "admin_password"
    with records.transaction() as session:
        asked = {"name": name}
        row = session.execute(text("SELECT 1 FROM instances WHERE name = :name"), asked).first()
    assert row is None
    data = {"drive": "config-2", "admin_password": client.seal("two\nlines")}
    with pytest.raises(InvalidRequest, match="admin_password"):
        client.spawn(name=name, **boot_guest, data=data).wait(60)


def test_a_destination_that_builds_another_drive_is_refused_before_anything_moves(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    guest = client.spawn(name=name, **boot_guest, data={"drive": "config-2"}).wait(120)
    src, dst = guest["host"], next(host for host in lab.hosts if host != guest["host"])
    wrong = {"id": guest["id"], "facts": '{"sha256": "00"}'}
    with records.transaction() as session:
        session.execute(
            text(
                "UPDATE disks SET facts = CAST(:facts AS jsonb) "
                "WHERE instance_id = :id AND kind = 'config_drive'"
            ),
            wrong,
        )
    with pytest.raises(PrecheckFailed) as caught:
        client.migrate(name, dst=dst, storage="block").wait(120)
    assert [each["check"] for each in caught.value.details["failures"]] == ["config_drive"]
    assert domains_on(lab, src)[name] == "running"
    assert files_of(lab, dst, guest["id"]) == []
