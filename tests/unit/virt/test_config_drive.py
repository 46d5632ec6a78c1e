"""The config drive's bytes: what is on it, in both layouts, and that nothing else counts.

The image is read back by pycdlib; tests/workflow/test_config_drive.py sees that Linux mounts it.
"""

import hashlib
import json
import os
import subprocess
import sys
from email import message_from_bytes
from io import BytesIO
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pycdlib import PyCdlib

from innkeeper.errors import InvalidRequest
from virt.cloud_config import cloud_config, join_user_data, to_json
from virt.config_drive import DriveContents, Layout, build_config_drive
from virt.guest_file import GuestFile
from virt.guest_network import CardFacts, network_config, network_data
from virt.iso_image import build_iso

ROOT = Path(__file__).parents[3]
PASSWORD = 'p:ä"\\ {x}: #😀'
TOKEN = GuestFile(path="/srv/to ken", content=bytes(range(256)), owner="web", mode="0400")
STATIC = CardFacts(
    mac="52:54:00:00:00:01",
    addresses=("10.0.0.5/24", "fd00::5/64"),
    gateway="fd00::1",
    nameservers=("10.0.0.1",),
    mtu=1400,
)
DYNAMIC = CardFacts(mac="52:54:00:00:00:02")


def contents(layout: Layout = "config-2", **changes: object) -> DriveContents:
    facts: dict[str, object] = {
        "layout": layout,
        "instance_id": UUID(int=7),
        "hostname": "vm-1",
        "ssh_keys": ("ssh-ed25519 AAAA me@here",),
        "admin_password": PASSWORD,
        "user_data": b"#!/bin/sh\n",
        "files": (TOKEN,),
        "metadata": {"role": "web"},
        "cards": (STATIC, DYNAMIC),
    }
    return DriveContents(**(facts | changes))  # type: ignore[arg-type]


def read(image: bytes) -> dict[str, bytes]:
    iso = PyCdlib()
    iso.open_fp(BytesIO(image))
    found = {}
    for directory, _, names in iso.walk(rr_path="/"):
        for name in names:
            path = f"{directory.rstrip('/')}/{name}"
            out = BytesIO()
            iso.get_file_from_iso_fp(out, rr_path=path)
            again = BytesIO()
            iso.get_file_from_iso_fp(again, joliet_path=path)
            assert out.getvalue() == again.getvalue(), "Rock Ridge and Joliet say the same"
            found[path.lstrip("/")] = out.getvalue()
    iso.close()
    return found


def test_the_openstack_layout_says_everything() -> None:
    tree = read(build_config_drive(contents()))
    assert set(tree) == {
        "openstack/content/0000",
        *(
            f"openstack/{version}/{name}"
            for version in ("latest", "2018-08-27")
            for name in ("meta_data.json", "network_data.json", "vendor_data.json", "user_data")
        ),
    }
    meta = json.loads(tree["openstack/latest/meta_data.json"])
    assert (meta["uuid"], meta["hostname"], meta["name"]) == (str(UUID(int=7)), "vm-1", "vm-1")
    assert meta["admin_pass"] == PASSWORD
    assert meta["public_keys"] == {"key-0": "ssh-ed25519 AAAA me@here"}
    assert meta["meta"] == {"role": "web"}
    assert meta["files"][0]["content_path"] == "/content/0000"
    assert tree["openstack/content/0000"] == TOKEN.content
    assert tree["openstack/latest/user_data"] == b"#!/bin/sh\n"
    assert tree["openstack/latest/meta_data.json"] == tree["openstack/2018-08-27/meta_data.json"]
    vendor = json.loads(tree["openstack/latest/vendor_data.json"])["cloud-init"]
    assert yaml.safe_load(vendor)["chpasswd"]["users"][0]["password"] == PASSWORD


def test_the_nocloud_layout_says_the_same() -> None:
    tree = read(build_config_drive(contents("nocloud")))
    assert set(tree) == {"meta-data", "user-data", "network-config"}
    meta = yaml.safe_load(tree["meta-data"])
    assert meta["instance-id"] == str(UUID(int=7))
    assert meta["local-hostname"] == "vm-1"
    assert meta["public-keys"] == ["ssh-ed25519 AAAA me@here"]
    script, ours = message_from_bytes(tree["user-data"]).get_payload()
    assert script.get_payload(decode=True) == b"#!/bin/sh\n"
    assert ours.get_content_type() == "text/cloud-config"
    written = yaml.safe_load(ours.get_payload(decode=True))
    file = written["write_files"][0]
    assert (file["path"], file["owner"], file["permissions"]) == ("/srv/to ken", "web:web", "0400")
    assert written["chpasswd"]["users"] == [{"name": "root", "password": PASSWORD, "type": "text"}]


def test_both_layouts_fit_on_one_drive() -> None:
    both = read(build_config_drive(contents("both")))
    assert both == {
        **read(build_config_drive(contents("config-2"))),
        **read(build_config_drive(contents("nocloud"))),
    }


@pytest.mark.parametrize(
    ("layout", "label"), [("config-2", "config-2"), ("both", "config-2"), ("nocloud", "cidata")]
)
def test_blkid_knows_the_drive(layout: Layout, label: str, tmp_path: Path) -> None:
    path = tmp_path / "drive.iso"
    path.write_bytes(build_config_drive(contents(layout)))
    said = subprocess.run(
        ["blkid", "-p", "-o", "export", str(path)], capture_output=True, text=True, check=True
    )
    assert {f"LABEL={label}", "TYPE=iso9660"} <= set(said.stdout.splitlines())


PROGRAM = """
import hashlib, sys, time
from tests.unit.virt.test_config_drive import contents
from virt.config_drive import build_config_drive
real = time.time
time.time = lambda: real() + float(sys.argv[1])
print(hashlib.sha256(build_config_drive(contents("both"))).hexdigest())
"""


def test_time_zone_and_hash_seed_do_not_count() -> None:
    def build(shift_s: float, zone: str, seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, str(shift_s)],
            cwd=ROOT,
            env={**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    here = hashlib.sha256(build_config_drive(contents("both"))).hexdigest()
    assert build(0, "UTC", "0") == here
    assert build(40_000_000, "Asia/Kathmandu", "7") == here


def test_the_bytes_are_those_of_the_first_release() -> None:
    """Guests are moved by building their drives anew: a change here strands those that exist."""
    built = hashlib.sha256(build_config_drive(contents("both"))).hexdigest()
    assert built == "5f188d5befd6ac91d2a472b8bb1998164a33da8f931d5db885a81701617a75c9"


def test_every_field_counts() -> None:
    changed = [
        {"hostname": "vm-2"},
        {"instance_id": UUID(int=8)},
        {"ssh_keys": ()},
        {"admin_password": None},
        {"user_data": None},
        {"files": ()},
        {"metadata": {}},
        {"cards": (STATIC,)},
    ]
    images = {build_config_drive(contents("both", **change)) for change in [{}, *changed]}
    assert len(images) == len(changed) + 1


def test_a_drive_without_anything_has_no_empty_words() -> None:
    bare = DriveContents(layout="both", instance_id=UUID(int=7), hostname="vm-1")
    tree = read(build_config_drive(bare))
    assert tree["user-data"] == b""
    assert json.loads(tree["openstack/latest/vendor_data.json"]) == {}
    assert not {path for path in tree if "user_data" in path or "content" in path}


def test_a_drive_may_not_grow_without_end() -> None:
    large = GuestFile(path="/x", content=bytes(4 << 20), owner="root", mode="0644")
    with pytest.raises(InvalidRequest, match="8388608 fit"):
        build_config_drive(contents("both", files=(large,)))


def test_what_a_drive_says_of_secrets_is_not_in_its_representation() -> None:
    shown = repr(contents(user_data=b"hush-hush"))
    assert PASSWORD not in shown
    assert "hush" not in shown
    assert "\\x01\\x02" not in shown


def test_network_data_has_static_addresses_routes_and_dhcp() -> None:
    said = network_data((STATIC, DYNAMIC))
    assert said["links"] == [
        {"id": "nic0", "type": "phy", "ethernet_mac_address": STATIC.mac, "mtu": 1400},
        {"id": "nic1", "type": "phy", "ethernet_mac_address": DYNAMIC.mac},
    ]
    four, six, dhcp = said["networks"]
    assert (four["type"], four["ip_address"], four["netmask"]) == (
        "ipv4",
        "10.0.0.5",
        "255.255.255.0",
    )
    assert four["routes"] == []
    assert six["routes"] == [{"network": "::", "netmask": "::", "gateway": "fd00::1"}]
    assert (dhcp["type"], dhcp["link"]) == ("ipv4_dhcp", "nic1")
    assert said["services"] == [{"type": "dns", "address": "10.0.0.1"}]


def test_network_config_finds_cards_by_their_address() -> None:
    said = network_config((STATIC, DYNAMIC))
    assert said["ethernets"]["nic0"] == {
        "match": {"macaddress": STATIC.mac},
        "addresses": ["10.0.0.5/24", "fd00::5/64"],
        "routes": [{"to": "::/0", "via": "fd00::1"}],
        "nameservers": {"addresses": ["10.0.0.1"]},
        "mtu": 1400,
    }
    assert said["ethernets"]["nic1"] == {"match": {"macaddress": DYNAMIC.mac}, "dhcp4": True}


def test_user_data_that_is_mime_already_gets_one_part_more() -> None:
    ours = cloud_config(admin_password="x", files=())
    once = join_user_data(b"#!/bin/sh\n", ours)
    twice = message_from_bytes(join_user_data(once, "#cloud-config\n{}\n"))
    assert [part.get_content_type() for part in twice.get_payload()] == [
        "text/plain",
        "text/cloud-config",
        "text/cloud-config",
    ]


def test_user_data_alone_stays_as_it_came() -> None:
    assert join_user_data(b"#cloud-config\n{}\n", None) == b"#cloud-config\n{}\n"
    assert join_user_data(None, "#cloud-config\n{}\n") == b"#cloud-config\n{}\n"


@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60))
@settings(max_examples=200)
def test_what_is_written_is_json_and_yaml(text: str) -> None:
    document = {"key": [text, {text: 1}]}
    assert json.loads(to_json(document)) == document
    assert yaml.safe_load(to_json(document)) == document


@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z_]{1,20}(/[a-z0-9._-]{1,30}){0,3}", fullmatch=True).filter(
            lambda path: not any(set(part) <= {"."} for part in path.split("/"))
        ),
        st.binary(max_size=5000),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40)
def test_an_image_gives_back_what_was_put_in(files: dict[str, bytes]) -> None:
    # A name cannot be a file and a directory.
    files = {p: c for p, c in files.items() if not any(o.startswith(p + "/") for o in files)}
    image = build_iso("label", files)
    assert read(image) == files
    assert image == build_iso("label", dict(reversed(files.items())))
