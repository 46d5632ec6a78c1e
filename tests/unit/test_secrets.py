"""Secrets: sealed by the client, opened by workers that hold a key, refused by all others."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from nacl.public import PrivateKey
from typer.testing import CliRunner

from innkeeper import seal
from innkeeper.errors import InvalidRequest, SecretUnreadable
from innkeeper.guest_parts import GuestData
from innkeeper.messages import Request
from innkeeper.requests import Asker, spawn
from innkeeper.sealing import encode_public_key, without_sealing
from innkeeper.types import InstanceSpec
from tasks.guest_data import open_guest_data, refuse_unreadable, wants_agent_files, wants_drive
from tasks.keyring import Keyring, fingerprint
from tasks.requests import digest_request
from workers.__main__ import cli
from workers.secret_keys import add_key, load_keyring
from workers.settings import SettingsError


def keyring(*keys: PrivateKey) -> Keyring:
    return Keyring([bytes(key) for key in keys])


def public(key: PrivateKey) -> str:
    return encode_public_key(bytes(key.public_key))


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


OLD, NEW, STRANGER = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()


@pytest.mark.parametrize("secret", ["pass wörd", b"\x00\xff", "x" * 300_000], ids=len)
def test_what_is_sealed_is_opened(secret: str | bytes) -> None:
    sealed = seal(public(NEW), secret)
    assert sealed.startswith("sealed:v1:")
    opened, key = keyring(NEW).unseal(sealed, path="x")
    assert opened == (secret.encode() if isinstance(secret, str) else secret)
    assert key == fingerprint(bytes(NEW.public_key))


def test_the_same_secret_never_looks_the_same() -> None:
    assert seal(public(NEW), "x") != seal(public(NEW), "x")


def test_an_old_key_still_opens_and_the_new_one_is_offered() -> None:
    ring = keyring(NEW, OLD)
    assert ring.public_key == public(NEW)
    assert ring.unseal(seal(public(OLD), "old"), path="x")[0] == b"old"
    assert ring.unseal(seal(public(NEW), "new"), path="x")[0] == b"new"


@pytest.mark.parametrize(
    ("ring", "sealed"),
    [
        (keyring(NEW, OLD), seal(public(STRANGER), "hush")),
        (Keyring(), seal(public(NEW), "hush")),
        (keyring(NEW), seal(public(NEW), "hush")[:-8] + "AAAAAAA="),
        (keyring(NEW), "sealed:v1:AAAA"),
        (keyring(NEW), "sealed:v1:!"),
        (keyring(NEW), "sealed:v1:"),
    ],
    ids=["another's key", "no key", "bent", "short", "not base64", "empty"],
)
def test_what_no_key_opens_is_refused_with_its_place(ring: Keyring, sealed: str) -> None:
    with pytest.raises(SecretUnreadable) as caught:
        ring.unseal(sealed, path="admin_password")
    assert caught.value.details["path"] == "admin_password"
    assert caught.value.details["keys"] == len(ring)
    assert sealed[10:] == "" or sealed[10:] not in str(caught.value.to_wire())


@pytest.mark.parametrize(
    "key",
    ["", "hunter2", "public:v1:AAAA", "public:v1:!", "public:v1:" + encoded(bytes(32))],
    ids=["empty", "a secret", "short", "not base64", "of low order"],
)
def test_a_wrong_public_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        seal(key, "hush")
    assert key == "" or key not in str(caught.value.to_wire())


# What a request says


def test_a_request_that_is_sealed_anew_is_the_same_request() -> None:
    def message(password: str, name: str = "vm-1") -> Any:
        data = {"drive": "config-2", "admin_password": seal(public(NEW), password)}
        spec = InstanceSpec.model_validate({"name": name, "image": "/x", "data": data})
        return spawn(spec, Asker(idempotency_key="k"))

    first, again, other = message("a"), message("a"), message("a", name="vm-2")
    assert first.kwargs != again.kwargs
    assert first.operation_id == again.operation_id != other.operation_id
    asked = [{"spec": each.kwargs["spec"]} for each in (first, again, other)]
    digests = {digest_request("spawn", fields) for fields in asked}
    assert len(digests) == 2


def test_only_sealed_texts_count_as_equal() -> None:
    assert without_sealing({"a": ["sealed:v1:x", "y", 1, None]}) == {
        "a": ["sealed:v1:", "y", 1, None]
    }


def data(**fields: Any) -> GuestData:
    return GuestData.model_validate({"drive": "config-2", **fields})


def test_guest_data_is_opened_and_sorted_by_its_way() -> None:
    opened = open_guest_data(
        keyring(NEW, OLD),
        data(
            user_data=seal(public(OLD), "#!/bin/sh"),
            admin_password=seal(public(NEW), "pä ss"),
            files=[
                {"path": "/a", "content": encoded(b"plain")},
                {"path": "/b", "content": seal(public(NEW), b"\x00\xff"), "via": "agent"},
            ],
        ),
    )
    assert opened.user_data == b"#!/bin/sh"
    assert opened.admin_password == "pä ss"
    assert [file.content for file in opened.drive_files] == [b"plain"]
    assert [file.content for file in opened.agent_files] == [b"\x00\xff"]
    both = {fingerprint(bytes(key.public_key)) for key in (NEW, OLD)}
    assert opened.keys == tuple(sorted(both))
    for secret in ("bin/sh", "pä ss", "plain", "xff"):
        assert secret not in repr(opened)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"admin_password": seal(public(NEW), "two\nlines")}, "admin_password"),
        ({"admin_password": seal(public(NEW), "")}, "admin_password"),
        ({"admin_password": seal(public(NEW), b"\xff")}, "admin_password"),
        ({"admin_password": seal(public(NEW), "x" * 2000)}, "admin_password"),
        ({"user_data": seal(public(NEW), "x" * 70_000)}, "user_data"),
        ({"files": [{"path": "/a\u0085", "content": ""}]}, "files.0.path"),
    ],
)
def test_secrets_that_cannot_be_what_they_are_for(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_guest_data(keyring(NEW), data(**fields))
    assert caught.value.details["problems"][0]["path"] == f"spec.data.{path}"


def request(password: str) -> dict[str, Any]:
    sealed = {"drive": "config-2", "admin_password": password}
    return {"spec": {"name": "vm-1", "image": "/x", "data": sealed}}


def test_control_refuses_what_it_cannot_open_and_without_a_key_leaves_it_to_the_host() -> None:
    readable, unreadable = seal(public(NEW), "x"), seal(public(STRANGER), "x")
    refuse_unreadable(keyring(NEW), request(readable))
    refuse_unreadable(Keyring(), request(unreadable))
    with pytest.raises(SecretUnreadable):
        refuse_unreadable(keyring(NEW), request(unreadable))
    for other in ({}, {"spec": None}, {"spec": {"data": 5}}, {"instance": "vm-1"}):
        refuse_unreadable(keyring(NEW), other)


@pytest.mark.parametrize(
    ("given", "drive", "agent"),
    [
        ({}, False, False),
        ({"drive": "nocloud"}, True, False),
        ({"files": [{"path": "/a", "content": "", "via": "agent"}]}, False, True),
        ({"drive": "both", "files": [{"path": "/a", "content": ""}]}, True, False),
    ],
)
def test_who_wants_what(given: dict[str, Any], drive: bool, agent: bool) -> None:
    row = {"data": GuestData.model_validate(given).model_dump(mode="json")}
    assert (wants_drive(row), wants_agent_files(row)) == (drive, agent)
    assert not wants_drive({})  # written by the previous release
    assert issubclass(GuestData, Request)


# The file of keys


def test_a_new_file_is_for_its_owner_alone_and_has_one_key(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys"
    ring = add_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(load_keyring(path)) == 1
    assert load_keyring(path).public_key == ring.public_key
    assert os.listdir(path.parent) == ["keys"]


def test_a_newer_key_comes_first_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    sealed_before = seal(str(add_key(path).public_key), "before")
    ring = add_key(path)
    assert len(ring) == 2
    assert ring.unseal(sealed_before, path="x")[0] == b"before"
    assert seal(str(ring.public_key), "x")
    assert add_key(path, only_if_missing=True).public_key == ring.public_key
    path.write_text("# made by hand\n\n" + path.read_text())
    assert load_keyring(path).public_key == ring.public_key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    add_key(path)
    path.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_keyring(path)


@pytest.mark.parametrize(
    "text", ["", "# only words\n", "secret:v1:AAAA\n", "hunter2\n", "secret:v1:ä\n", "\xff"]
)
def test_a_file_without_keys_is_refused_and_its_lines_are_not_repeated(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(SettingsError) as caught:
        load_keyring(path)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SettingsError):
        load_keyring(tmp_path / "missing")
    assert len(load_keyring(None)) == 0


def test_the_command_makes_a_key_and_prints_only_its_public_half(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ran = CliRunner().invoke(cli, ["new-secret-key", str(path)])
    assert ran.exit_code == 0, ran.output
    assert ran.output.strip() == load_keyring(path).public_key
    again = CliRunner().invoke(cli, ["new-secret-key", str(path), "--if-missing"])
    assert again.output == ran.output
    listed = CliRunner().invoke(cli, ["secret-keys", str(path)])
    assert [line.split()[1] for line in listed.output.splitlines()] == [ran.output.strip()]
    path.chmod(0o644)
    refused = CliRunner().invoke(cli, ["new-secret-key", str(path)])
    assert refused.exit_code == 2
    assert "chmod 600" in refused.output
