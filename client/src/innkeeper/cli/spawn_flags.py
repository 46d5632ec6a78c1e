"""What stands behind the flags of spawn: short texts and files, made into fields of the spec."""

import base64
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from innkeeper.errors import InvalidRequest
from innkeeper.migration_types import MigrationDefaults

DISK_KEYS = {
    "kind": "kind",
    "fs": "filesystem",
    "label": "label",
    "format": "format",
    "bus": "bus",
    "serial": "serial",
    "pool": "pool",
}
NIC_KEYS = {
    "bridge": "bridge",
    "mac": "mac",
    "model": "model",
    "address": "addresses",
    "gateway": "gateway",
    "nameserver": "nameservers",
    "mtu": "mtu",
}
FILE_KEYS = {"mode": "mode", "owner": "owner", "via": "via"}
TOPOLOGY_KEYS = {"sockets": "sockets", "cores": "cores", "threads": "threads"}
LISTS = frozenset({"addresses", "nameservers"})
NUMBERS = frozenset({"size_mib", "mtu", "sockets", "cores", "threads"})

Seal = Callable[[bytes], str]


def wrong(flag: str, message: str) -> InvalidRequest:
    """Return the error for one wrong flag."""
    return InvalidRequest(
        f"{flag}: {message}.",
        {"problems": [{"path": flag, "message": message}], "hint": "See innkeeper spawn --help."},
    )


def read_spec(path: Path) -> dict[str, Any]:
    """Return the fields of a spec file, JSON if it is named so and TOML otherwise.

    Raises:
        InvalidRequest: it cannot be read, or holds no table of fields.
    """
    data = _read(path, "--spec")
    try:
        fields = json.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise wrong("--spec", f"{path} is not {kind}: {exc}") from None
    if not isinstance(fields, dict):
        raise wrong("--spec", f"{path} holds no table of fields")
    image = fields.get("image")
    if isinstance(image, str) and image and "://" not in image:
        fields["image"] = str(path.parent.absolute() / image)
    return fields


def parse_disk(text: str) -> dict[str, Any]:
    """Parse ``SIZE_MIB[:key=value,…]``."""
    size, _, rest = text.partition(":")
    return {
        "size_mib": _number("--disk", "the size in MiB", size),
        **_pairs("--disk", rest, DISK_KEYS),
    }


def parse_nic(text: str) -> dict[str, Any]:
    """Parse ``bridge=NAME,key=value,…``; a name alone is the bridge's."""
    return {"bridge": text} if "=" not in text else _pairs("--nic", text, NIC_KEYS)


def parse_topology(text: str) -> dict[str, Any]:
    """Parse ``sockets=1,cores=2,threads=2``."""
    return _pairs("--topology", text, TOPOLOGY_KEYS)


def parse_migration(text: str) -> dict[str, Any]:
    """Parse ``max_downtime_ms=150,on_timeout=pause``."""
    return _pairs("--migration", text, {name: name for name in MigrationDefaults.model_fields})


def parse_group(text: str) -> dict[str, Any]:
    """Parse ``NAME:POLICY``."""
    name, colon, policy = text.partition(":")
    if not (name and colon and policy):
        raise wrong("--group", f"{text!r} is not of the form NAME:POLICY")
    return {"name": name, "policy": policy.replace("-", "_")}


def parse_metadata(entries: Iterable[str]) -> dict[str, str]:
    """Parse entries of the form ``KEY=VALUE``."""
    pairs = [entry.partition("=") for entry in entries]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise wrong("--metadata", f"{key!r} is not of the form KEY=VALUE")
    return {key: value for key, _, value in pairs}


def read_file(text: str, seal: Seal | None) -> dict[str, Any]:
    """Read what ``GUEST_PATH=FILE[,key=value,…]`` names.

    Args:
        text: the flag's value.
        seal: encrypts the content; None to send it as it is.
    """
    path, equals, rest = text.partition("=")
    if not (path and equals and rest):
        raise wrong("--file", f"{text!r} is not of the form GUEST_PATH=FILE")
    name, _, options = rest.partition(",")
    content = _read(Path(name), "--file")
    return {
        "path": path,
        "content": seal(content) if seal else base64.b64encode(content).decode(),
        **_pairs("--file", options, FILE_KEYS),
    }


def read_ssh_keys(paths: Iterable[Path]) -> list[str]:
    """Return the public keys in files, one a line; comments and empty lines do not count.

    Raises:
        InvalidRequest: a file holds none, or holds a private key.
    """
    keys: list[str] = []
    for path in paths:
        text = _text(path, "--ssh-key")
        if "PRIVATE KEY" in text:
            raise wrong("--ssh-key", f"{path} is a private key; give the public one, {path}.pub")
        found = [line.strip() for line in text.splitlines()]
        found = [line for line in found if line and not line.startswith("#")]
        if not found:
            raise wrong("--ssh-key", f"{path} holds no key")
        keys += found
    return keys


def read_user_data(path: Path, seal: Seal | None) -> str:
    """Return the user data in a file.

    Args:
        path: the file.
        seal: encrypts it; None to send it as it is.
    """
    return seal(_read(path, "--user-data")) if seal else _text(path, "--user-data")


def read_secret(path: Path, flag: str) -> str:
    """Return the one line of a file that holds a secret."""
    text = _text(path, flag).rstrip("\r\n")
    if not text or "\n" in text:
        raise wrong(flag, f"{path} does not hold one line")
    return text


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with others laid over them: tables key by key, all else as a whole."""
    merged = dict(base)
    for name, value in over.items():
        under = merged.get(name)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        merged[name] = overlaid(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _pairs(flag: str, text: str, keys: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not (equals and value) or key not in keys:
            raise wrong(flag, f"{pair!r} is none of {', '.join(f'{k}=…' for k in keys)}")
        field = keys[key]
        if field in LISTS:
            fields.setdefault(field, []).append(value)
        elif field in fields:
            raise wrong(flag, f"{key} is given twice")
        else:
            fields[field] = _number(flag, key, value) if field in NUMBERS else value
    return fields


def _number(flag: str, what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise wrong(flag, f"{what} is a whole number, not {text!r}")
    return int(text)


def _text(path: Path, flag: str) -> str:
    try:
        return _read(path, flag).decode()
    except UnicodeDecodeError:
        raise wrong(flag, f"{path} is not text in UTF-8") from None


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise wrong(flag, f"{path} cannot be read: {exc.strerror}") from None
