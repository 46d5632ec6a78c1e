"""What a guest is told, with its secrets opened; nothing of it is ever written or logged."""

import base64
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from innkeeper.errors import InvalidRequest
from innkeeper.guest_parts import (
    USER_DATA_MAX_BYTES,
    GuestData,
    InjectedFile,
    is_sealed,
)
from tasks.keyring import Keyring
from virt.guest_file import GuestFile

PASSWORD_MAX_CHARS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenData:
    """A guest's data in the clear.

    Args:
        user_data: as the caller wrote it.
        admin_password: root's.
        drive_files: files for the drive.
        agent_files: files for the guest agent.
        keys: fingerprints of the keys that opened something.
    """

    user_data: bytes | None = field(repr=False)
    admin_password: str | None = field(repr=False)
    drive_files: tuple[GuestFile, ...]
    agent_files: tuple[GuestFile, ...]
    keys: tuple[str, ...]


def wants_drive(spec: Mapping[str, Any]) -> bool:
    """Tell from a guest's spec, as its row has it, whether it gets a config drive."""
    return bool((spec.get("data") or {}).get("drive", "none") != "none")


def wants_agent_files(spec: Mapping[str, Any]) -> bool:
    """Tell from a guest's spec, as its row has it, whether its agent is to write files."""
    files = (spec.get("data") or {}).get("files") or ()
    return any(file.get("via") == "agent" for file in files)


def open_guest_data(keyring: Keyring, data: GuestData) -> OpenData:
    """Open what is sealed, and check what could not be checked before.

    Raises:
        SecretUnreadable: no key opens one of the sealed texts.
        InvalidRequest: a secret is too long, or cannot be what it is meant for.
    """
    used: list[str] = []

    def reveal(text: str, path: str) -> bytes:
        secret, key = keyring.unseal(text, path=path)
        used.append(key)
        return secret

    user_data = None
    if data.user_data is not None:
        sealed = is_sealed(data.user_data)
        user_data = reveal(data.user_data, "user_data") if sealed else data.user_data.encode()
        if len(user_data) > USER_DATA_MAX_BYTES:
            raise _wrong("user_data", f"has more than {USER_DATA_MAX_BYTES} bytes")
    password = None
    if data.admin_password is not None:
        password = _read_password(reveal(data.admin_password, "admin_password"))
    on_drive: list[GuestFile] = []
    by_agent: list[GuestFile] = []
    for number, file in enumerate(data.files):
        path = f"files.{number}.content"
        content = reveal(file.content, path) if is_sealed(file.content) else _decode(file.content)
        opened = _open_file(number, file, content)
        (by_agent if file.via == "agent" else on_drive).append(opened)
    return OpenData(
        user_data=user_data,
        admin_password=password,
        drive_files=tuple(on_drive),
        agent_files=tuple(by_agent),
        keys=tuple(sorted(set(used))),
    )


def refuse_unreadable(keyring: Keyring, fields: Mapping[str, Any]) -> None:
    """Refuse a request whose secrets cannot be opened, before anything is written.

    A control worker without keys lets it pass: the host will see.

    Raises:
        SecretUnreadable, InvalidRequest: see ``open_guest_data``.
    """
    spec = fields.get("spec")
    raw = spec.get("data") if isinstance(spec, Mapping) else None
    if not isinstance(raw, Mapping):
        return
    if not keyring and any(is_sealed(text) for text in _texts(raw)):
        return
    try:
        data = GuestData.model_validate(raw)
    except ValidationError:
        # Told by the acceptance, with every other problem of the request.
        return
    open_guest_data(keyring, data)


def _open_file(number: int, file: InjectedFile, content: bytes) -> GuestFile:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in file.path):
        raise _wrong(f"files.{number}.path", "control characters cannot stand here")
    return GuestFile(path=file.path, content=content, owner=file.owner, mode=file.mode)


def _decode(content: str) -> bytes:
    return base64.b64decode(content, validate=True)


def _read_password(secret: bytes) -> str:
    try:
        password = secret.decode()
    except UnicodeDecodeError:
        raise _wrong("admin_password", "is not UTF-8") from None
    if not 0 < len(password) <= PASSWORD_MAX_CHARS:
        raise _wrong("admin_password", f"has not 1 to {PASSWORD_MAX_CHARS} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in password):
        raise _wrong("admin_password", "control characters and line breaks cannot stand here")
    return password


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _wrong(path: str, message: str) -> InvalidRequest:
    return InvalidRequest(
        f"The guest's data is not valid ({path}: {message}).",
        {"problems": [{"path": f"spec.data.{path}", "message": message}]},
    )
