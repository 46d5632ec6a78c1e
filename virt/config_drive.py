"""The config drive: what a guest is told at its first boot, as the bytes of an ISO image. Pure.

Two layouts: OpenStack's (label ``config-2``) and cloud-init's NoCloud (label ``cidata``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from innkeeper.errors import InvalidRequest
from virt.cloud_config import cloud_config, join_user_data, to_json
from virt.guest_file import GuestFile
from virt.guest_network import CardFacts, network_config, network_data
from virt.iso_image import build_iso

Layout = Literal["config-2", "nocloud", "both"]

OPENSTACK_VERSIONS = ("2018-08-27", "latest")
DRIVE_MAX_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveContents:
    """What the drive says; secrets are kept out of every representation.

    Args:
        layout: ``config-2``, ``nocloud`` or ``both``.
        instance_id: makes the guest's first boot its first.
        hostname: the guest's name.
        ssh_keys: public keys, one line each.
        admin_password: root's, in the clear.
        user_data: the caller's, as it came.
        files: files to write.
        metadata: the owner's own.
        cards: the network cards, in the guest's order.
    """

    layout: Layout
    instance_id: UUID
    hostname: str
    ssh_keys: tuple[str, ...] = ()
    admin_password: str | None = field(default=None, repr=False)
    user_data: bytes | None = field(default=None, repr=False)
    files: tuple[GuestFile, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    cards: tuple[CardFacts, ...] = ()


def build_config_drive(contents: DriveContents) -> bytes:
    """Return the drive's ISO image; the same contents give the same bytes on every host.

    Raises:
        InvalidRequest: it would be larger than 8 MiB.
    """
    tree: dict[str, bytes] = {}
    if contents.layout in ("config-2", "both"):
        tree |= _openstack(contents)
    if contents.layout in ("nocloud", "both"):
        tree |= _nocloud(contents)
    label = "cidata" if contents.layout == "nocloud" else "config-2"
    size_bytes = sum(len(content) for content in tree.values())
    if size_bytes > DRIVE_MAX_BYTES:
        raise InvalidRequest(
            f"The config drive would hold {size_bytes} bytes; {DRIVE_MAX_BYTES} fit.",
            {"problems": [{"path": "data", "message": f"more than {DRIVE_MAX_BYTES} bytes"}]},
        )
    return build_iso(label, tree)


def _openstack(contents: DriveContents) -> dict[str, bytes]:
    meta: dict[str, Any] = {
        "uuid": str(contents.instance_id),
        "hostname": contents.hostname,
        "name": contents.hostname,
        "launch_index": 0,
        "meta": dict(contents.metadata),
        "public_keys": {f"key-{n}": key for n, key in enumerate(contents.ssh_keys)},
        "keys": [
            {"name": f"key-{n}", "type": "ssh", "data": key}
            for n, key in enumerate(contents.ssh_keys)
        ],
    }
    if contents.admin_password is not None:
        meta["admin_pass"] = contents.admin_password
    tree: dict[str, bytes] = {}
    if contents.files:
        # Nova has neither owner nor mode; readers of its layout ignore them.
        meta["files"] = [
            {
                "path": file.path,
                "content_path": f"/content/{number:04}",
                "owner": file.owner,
                "mode": file.mode,
            }
            for number, file in enumerate(contents.files)
        ]
        for number, file in enumerate(contents.files):
            tree[f"openstack/content/{number:04}"] = file.content
    # cloud-init writes the files above for root alone and takes no password from here. From the
    # vendor's data it sets the password, owners and modes, too.
    vendor = cloud_config(admin_password=contents.admin_password, files=contents.files)
    for version in OPENSTACK_VERSIONS:
        place = f"openstack/{version}"
        tree[f"{place}/meta_data.json"] = _bytes(meta)
        tree[f"{place}/network_data.json"] = _bytes(network_data(contents.cards))
        tree[f"{place}/vendor_data.json"] = _bytes({"cloud-init": vendor} if vendor else {})
        if contents.user_data:
            tree[f"{place}/user_data"] = contents.user_data
    return tree


def _nocloud(contents: DriveContents) -> dict[str, bytes]:
    meta = {
        "instance-id": str(contents.instance_id),
        "local-hostname": contents.hostname,
        "public-keys": list(contents.ssh_keys),
    }
    ours = cloud_config(admin_password=contents.admin_password, files=contents.files)
    tree = {"meta-data": _bytes(meta), "user-data": join_user_data(contents.user_data, ours)}
    if contents.cards:
        tree["network-config"] = _bytes(network_config(contents.cards))
    return tree


def _bytes(document: Any) -> bytes:
    return to_json(document).encode()
