"""The flags of spawn: each arrives as its field, files override nothing, errors name the flag."""

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from control_stub import Control
from nacl.public import PrivateKey, SealedBox
from private_redis import PrivateRedis

from innkeeper.cli.app import run
from innkeeper.cli.spawn import FLAG_OF
from innkeeper.guest_parts import SEALED_PREFIX
from innkeeper.sealing import encode_public_key
from innkeeper.types import InstanceSpec

Ran = tuple[int, str, str]
Run = Callable[..., Ran]


@pytest.fixture
def innkeeper(
    control: Control,
    private_redis: PrivateRedis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    monkeypatch.setenv("INNKEEPER_BROKER_URL", private_redis.broker_url)
    monkeypatch.setenv("INNKEEPER_RESULT_URL", private_redis.result_url)

    def call(*arguments: str) -> Ran:
        code = run(("spawn", *arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def sent(innkeeper: Run, control: Control) -> Callable[..., dict[str, Any]]:
    """Run spawn, and return the spec that arrived."""

    def call(*arguments: str) -> dict[str, Any]:
        code, out, err = innkeeper(*arguments, "--no-wait", "--json")
        assert (code, err) == (0, ""), out + err
        _, kwargs = control.await_request(json.loads(out)["operation_id"])
        spec: dict[str, Any] = kwargs["spec"]
        return spec

    return call


Sent = Callable[..., dict[str, Any]]


def test_every_flag_arrives_as_its_field(sent: Sent) -> None:
    spec = sent(
        *("vm-1", "--image", "https://images.example/noble.raw", "--image-format", "raw"),
        *("--sha256", "0" * 64, "--sha512", "1" * 128, "--instant", "--source-lost", "fail"),
        *("--disk-gib", "9", "--root-format", "qcow2", "--root-bus", "scsi"),
        *("--preallocation", "off", "--pool", "fast"),
        *("--disk", "2048:kind=ephemeral,fs=ext4,label=scratch,format=raw,bus=sata,serial=S1"),
        *("--disk", "512:kind=swap,pool=slow"),
        *("--vcpus", "4", "--memory-mib", "2048", "--machine", "pc-q35-7.2"),
        *("--firmware", "uefi", "--cpu-model", "Nehalem"),
        *("--topology", "sockets=1,cores=2,threads=2", "--video", "none"),
        *("--watchdog", "reset", "--boot-order", "network,disk"),
        *("--kernel", "https://images.example/k", "--kernel-sha256", "2" * 64),
        *("--ramdisk", "r", "--ramdisk-sha256", "3" * 64, "--command-line", "quiet x=1,2"),
        *("--nic", "br1"),
        *("--nic", "bridge=br0,mac=52:54:00:00:00:01,model=e1000,address=10.0.0.5/24,mtu=1400"),
        *("--nic", "bridge=br2,address=10.0.1.5/24,address=10.0.1.6/24,gateway=10.0.1.1"),
        *("--group", "shop:anti-affinity", "--wait", "cloud_init"),
        *("--metadata", "a=b=c", "--metadata", "d="),
        *("--migration", "max_downtime_ms=150,post_copy=true"),
    )
    assert spec == {
        "name": "vm-1",
        "migration": {"max_downtime_ms": 150, "post_copy": True},
        "image": "https://images.example/noble.raw",
        "image_format": "raw",
        "sha256": "0" * 64,
        "sha512": "1" * 128,
        "delivery": "instant",
        "source_lost": "fail",
        "disk_gib": 9,
        "root_format": "qcow2",
        "preallocation": "off",
        "pool": "fast",
        "disks": [
            {
                "size_mib": 2048,
                "kind": "ephemeral",
                "filesystem": "ext4",
                "label": "scratch",
                "format": "raw",
                "bus": "sata",
                "serial": "S1",
            },
            {"size_mib": 512, "kind": "swap", "pool": "slow"},
        ],
        "vcpus": 4,
        "memory_mib": 2048,
        "hardware": {
            "machine": "pc-q35-7.2",
            "firmware": "uefi",
            "cpu_model": "Nehalem",
            "topology": {"sockets": 1, "cores": 2, "threads": 2},
            "root_bus": "scsi",
            "video": "none",
            "watchdog": "reset",
            "boot_order": ["network", "disk"],
        },
        "direct_boot": {
            "kernel": "https://images.example/k",
            "kernel_sha256": "2" * 64,
            "ramdisk": os.path.abspath("r"),
            "ramdisk_sha256": "3" * 64,
            "command_line": "quiet x=1,2",
        },
        "network_cards": [
            {"bridge": "br1"},
            {
                "bridge": "br0",
                "mac": "52:54:00:00:00:01",
                "model": "e1000",
                "addresses": ["10.0.0.5/24"],
                "mtu": 1400,
            },
            {
                "bridge": "br2",
                "addresses": ["10.0.1.5/24", "10.0.1.6/24"],
                "gateway": "10.0.1.1",
            },
        ],
        "group": {"name": "shop", "policy": "anti_affinity"},
        "wait": "cloud_init",
        "metadata": {"a": "b=c", "d": ""},
    }


def test_what_the_guest_is_told_comes_from_files(sent: Sent, tmp_path: Path) -> None:
    keys = tmp_path / "id.pub"
    keys.write_text("# mine\nssh-ed25519 AAAA me@home\n\nssh-rsa BBBB\n")
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\n")
    motd = tmp_path / "motd"
    motd.write_bytes(b"\0hello")
    spec = sent(
        *("vm-2", "--image", "/i.qcow2", "--ssh-key", str(keys), "--user-data", str(data)),
        *("--file", f"/etc/motd={motd},mode=0600,owner=root:adm"),
    )
    assert spec["data"] == {
        "drive": "config-2",
        "ssh_keys": ["ssh-ed25519 AAAA me@home", "ssh-rsa BBBB"],
        "user_data": "#cloud-config\n",
        "files": [
            {
                "path": "/etc/motd",
                "content": base64.b64encode(b"\0hello").decode(),
                "mode": "0600",
                "owner": "root:adm",
            }
        ],
    }


def test_a_file_through_the_agent_needs_no_drive(sent: Sent, tmp_path: Path) -> None:
    motd = tmp_path / "motd"
    motd.write_bytes(b"x")
    told = sent(
        *("vm-3", "--image", "/i.qcow2", "--wait", "agent", "--file", f"/etc/motd={motd},via=agent")
    )["data"]
    assert "drive" not in told
    chosen = sent("vm-4", "--image", "/i", "--drive", "nocloud")["data"]
    assert chosen == {"drive": "nocloud"}


def test_secrets_come_from_files_and_are_sealed(
    sent: Sent, innkeeper: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = PrivateKey.generate()
    monkeypatch.setenv("INNKEEPER_PUBLIC_KEY", encode_public_key(bytes(private.public_key)))
    password, motd, user_data = (tmp_path / name for name in ("password", "motd", "user-data"))
    password.write_text("pass word\n")
    motd.write_bytes(b"hello")
    user_data.write_text("#!/bin/sh\n")

    def opened(sealed: str) -> bytes:
        assert sealed.startswith(SEALED_PREFIX)
        return SealedBox(private).decrypt(base64.b64decode(sealed.removeprefix(SEALED_PREFIX)))

    told = sent(
        *("vm-5", "--image", "/i.qcow2", "--admin-password-file", str(password), "--seal"),
        *("--file", f"/etc/motd={motd}", "--user-data", str(user_data)),
    )["data"]
    assert told["drive"] == "config-2"
    assert opened(told["admin_password"]) == b"pass word"
    assert opened(told["files"][0]["content"]) == b"hello"
    assert opened(told["user_data"]) == b"#!/bin/sh\n"

    password.write_text("one\ntwo\n")
    code, out, err = innkeeper(*GOOD, "--admin-password-file", str(password))
    assert code == 2
    assert "--admin-password-file" in err
    assert "one" not in (out + err).replace("one line", "")
    code, _, err = innkeeper(*GOOD, "--admin-password-file", "x", "--ask-admin-password")
    assert (code, "exclude each other" in err) == (2, True)


def test_the_password_is_asked_for_unseen(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    private = PrivateKey.generate()
    monkeypatch.setenv("INNKEEPER_PUBLIC_KEY", encode_public_key(bytes(private.public_key)))
    asked: list[dict[str, Any]] = []

    def prompt(_: str, **how: Any) -> str:
        asked.append(how)
        return "secret"

    monkeypatch.setattr(typer, "prompt", prompt)
    told = sent("vm-6", "--image", "/i.qcow2", "--ask-admin-password")["data"]
    assert told["admin_password"].startswith(SEALED_PREFIX)
    assert [how["hide_input"] for how in asked] == [True]


SPEC_TOML = """
name = "from-file"
image = "noble.qcow2"
vcpus = 2
[hardware]
machine = "pc-q35-7.2"
watchdog = "pause"
[[disks]]
size_mib = 10
[metadata]
owner = "ann"
"""


def test_a_spec_file_is_overridden_by_flags(sent: Sent, tmp_path: Path) -> None:
    toml = tmp_path / "vm.toml"
    toml.write_text(SPEC_TOML)
    assert sent("--spec", str(toml)) == {
        "name": "from-file",
        "image": str(tmp_path / "noble.qcow2"),
        "vcpus": 2,
        "hardware": {"machine": "pc-q35-7.2", "watchdog": "pause"},
        "disks": [{"size_mib": 10}],
        "metadata": {"owner": "ann"},
    }
    spec = sent(
        *("other", "--spec", str(toml), "--vcpus", "4", "--watchdog", "none"),
        *("--disk", "20", "--metadata", "x=y"),
    )
    assert (spec["name"], spec["vcpus"], spec["disks"]) == ("other", 4, [{"size_mib": 20}])
    assert spec["hardware"] == {"machine": "pc-q35-7.2", "watchdog": "none"}
    assert spec["metadata"] == {"owner": "ann", "x": "y"}
    document = tmp_path / "vm.json"
    document.write_text(json.dumps({"name": "of-json", "image": "/i.qcow2"}))
    assert sent("--spec", str(document))["name"] == "of-json"


GOOD = ("vm-9", "--image", "/i.qcow2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "NAME: Field required"),
        (("vm-9",), "--image: Field required"),
        ((*GOOD, "--disk", "ten"), "--disk: the size in MiB is a whole number, not 'ten'"),
        ((*GOOD, "--disk", "10:colour=red"), "--disk: 'colour=red' is none of kind="),
        ((*GOOD, "--disk", "10", "--disk", "10:bus=floppy"), "--disk (1.bus): Input should be"),
        ((*GOOD, "--nic", "mac=52:54:00:00:00:01"), "--nic (0.bridge): Field required"),
        ((*GOOD, "--nic", "bridge=br0,mtu=big"), "--nic: mtu is a whole number"),
        ((*GOOD, "--nic", "bridge=a,bridge=b"), "--nic: bridge is given twice"),
        ((*GOOD, "--machine", "q35"), "--machine: String should match pattern"),
        ((*GOOD, "--topology", "cores"), "--topology: 'cores' is none of sockets="),
        ((*GOOD, "--topology", "cores=3"), "--topology: gives 3 vCPUs, not 1"),
        ((*GOOD, "--boot-order", "disk,tape"), "--boot-order (1): Input should be"),
        (
            (*GOOD, "--topology", "cores=3", "--instant"),
            "--instant: instant takes raw images only, whose bytes mean nothing; --instant:",
        ),
        ((*GOOD, "--disk", "10:kind=swap,fs=ext4"), "--disk (0): a swap disk carries no file"),
        ((*GOOD, "--group", "shop"), "--group: 'shop' is not of the form NAME:POLICY"),
        ((*GOOD, "--group", "shop:never"), "--group (policy): Input should be"),
        ((*GOOD, "--metadata", "x"), "--metadata: 'x' is not of the form KEY=VALUE"),
        ((*GOOD, "--user-data", "/no/such"), "--user-data: /no/such cannot be read: No such file"),
        ((*GOOD, "--file", "/etc/motd"), "--file: '/etc/motd' is not of the form GUEST_PATH=FILE"),
        ((*GOOD, "--spec", "/no/such.toml"), "--spec: /no/such.toml cannot be read"),
    ],
)
def test_a_wrong_flag_is_named(innkeeper: Run, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = innkeeper(*arguments)
    assert code == 2
    assert said in re.sub(r"\s+", " ", err)


def test_files_that_are_not_what_they_should_be(innkeeper: Run, tmp_path: Path) -> None:
    private = tmp_path / "id"
    private.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nSECRET\n")
    code, _, err = innkeeper(*GOOD, "--ssh-key", str(private))
    assert code == 2
    assert "is a private key" in err
    assert "SECRET" not in err
    broken = tmp_path / "vm.toml"
    broken.write_text("name = ")
    assert "is not TOML" in innkeeper("--spec", str(broken))[2]
    broken = tmp_path / "vm.json"
    broken.write_text("[1]")
    assert "holds no table of fields" in innkeeper("--spec", str(broken))[2]


def test_help_is_in_panels_and_every_field_has_a_flag(innkeeper: Run) -> None:
    _, out, err = innkeeper("--help")
    shown = out + err
    for panel in ("Machine", "Image and disks", "Network", "What the guest is told", "Boot"):
        assert f"─ {panel} ─" in shown
    for flag in set(FLAG_OF.values()) - {"NAME"}:
        # A terminal of 80 columns cuts the longest in two.
        assert flag[:20] in shown, flag
    assert {field.split(".")[0] for field in FLAG_OF} | {"data", "hardware"} == set(
        InstanceSpec.model_fields
    )


def test_the_guides_example_is_a_guest(sent: Sent, tmp_path: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "howto" / "describe-a-guest.md"
    example = re.search(r"```toml\n(.*?)```", guide.read_text(), re.DOTALL)
    assert example is not None
    toml = tmp_path / "web.toml"
    toml.write_text(example[1])
    spec = sent("web-2", "--spec", str(toml), "--host", "hv-b")
    assert (spec["host"], spec["hardware"]["firmware"]) == ("hv-b", "uefi")
