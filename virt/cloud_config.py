"""Instructions for cloud-init: password, keys and files as cloud-config, user data beside it. Pure.

JSON is YAML, except for how it escapes: ``to_json`` writes what both understand.
"""

import base64
import json
import re
from email import message_from_bytes
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from typing import Any

from virt.guest_file import GuestFile

HEADER = "#cloud-config\n"
BOUNDARY = "===============innkeeper=="
# Ours comes last and adds to the lists of the caller's own, where it would replace them.
MERGE = [{"name": "list", "settings": ["append"]}, {"name": "dict", "settings": ["recurse_list"]}]
_MIME_STARTS = (b"content-type:", b"mime-version:", b"from ")


def cloud_config(*, admin_password: str | None, files: tuple[GuestFile, ...]) -> str | None:
    """Return cloud-config that sets root's password and writes files; None when there is neither.

    Args:
        admin_password: in the clear.
        files: written with their owner and mode.
    """
    document: dict[str, Any] = {}
    if admin_password is not None:
        user = {"name": "root", "password": admin_password, "type": "text"}
        document["chpasswd"] = {"expire": False, "users": [user]}
    if files:
        document["write_files"] = [
            {
                "path": file.path,
                "encoding": "b64",
                "content": base64.b64encode(file.content).decode(),
                "owner": file.owner if ":" in file.owner else f"{file.owner}:{file.owner}",
                "permissions": file.mode,
            }
            for file in files
        ]
    if not document:
        return None
    return HEADER + to_json(document | {"merge_how": MERGE})


def join_user_data(user_data: bytes | None, ours: str | None) -> bytes:
    """Return user data with our cloud-config added, as MIME where there are two parts.

    Args:
        user_data: the caller's: a script, cloud-config, anything cloud-init takes.
        ours: cloud-config; None for nothing to add.
    """
    if ours is None:
        return user_data or b""
    if not user_data:
        return ours.encode()
    if user_data.lower().startswith(_MIME_STARTS):
        known = message_from_bytes(user_data)
        if known.is_multipart():
            known.attach(_part(ours.encode(), "cloud-config"))
            return known.as_bytes()
    outer = MIMEMultipart("mixed", BOUNDARY)
    # As plain text: cloud-init then looks at its first line for what it is.
    outer.attach(_part(user_data, "plain"))
    outer.attach(_part(ours.encode(), "cloud-config"))
    return outer.as_bytes()


def _part(content: bytes, subtype: str) -> MIMEBase:
    part = MIMEBase("text", subtype)
    part.set_payload(base64.encodebytes(content).decode())
    part["Content-Transfer-Encoding"] = "base64"
    return part


def to_json(document: Any) -> str:
    """Return JSON that is YAML as well, one value a line; the same for the same document."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    return re.sub(r"[^\x00-\x7e]", lambda match: _escape(match[0]), text) + "\n"


def _escape(character: str) -> str:
    code = ord(character)
    # YAML knows no surrogate pairs, JSON no escape of more than four digits: what lies beyond
    # stays as it is, in UTF-8.
    return f"\\u{code:04x}" if code <= 0xFFFF else character
