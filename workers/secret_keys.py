"""The file of private keys: one key a line, the newest first, readable by its owner alone."""

import base64
import binascii
import os
import secrets
from pathlib import Path

from innkeeper.sealing import KEY_BYTES
from tasks.keyring import Keyring
from workers.settings import SettingsError

SECRET_KEY_PREFIX = "secret:v1:"  # noqa: S105 (the name of a format)
FOREIGN_BITS = 0o077


def load_keyring(path: Path | None) -> Keyring:
    """Read the keys.

    Args:
        path: the file; None for a worker that holds none.

    Raises:
        SettingsError: the file cannot be read, others may read it, or a line is no key.
    """
    if path is None:
        return Keyring()
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().splitlines()
    except OSError as exc:
        raise SettingsError(f"secret_key_file {path}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"secret_key_file {path}: is not a file of keys") from None
    if mode & FOREIGN_BITS:
        raise SettingsError(
            f"secret_key_file {path}: others may read it (mode {mode & 0o777:04o}); "
            f"do: chmod 600 {path}"
        )
    keys = [_parse(path, number, line) for number, line in enumerate(lines, 1) if _is_key(line)]
    if not keys:
        raise SettingsError(f"secret_key_file {path}: holds no key")
    return Keyring(keys)


def add_key(path: Path, *, only_if_missing: bool = False) -> Keyring:
    """Put a new key first into the file, which is made when there is none.

    Args:
        path: the file; replaced in one go, so that a reader sees the old keys or all.
        only_if_missing: leave a file alone that is there.

    Returns:
        The keys that are in the file now.

    Raises:
        SettingsError: what is there is not a file of keys.
        OSError: it cannot be written.
    """
    old = ""
    if path.exists():
        keyring = load_keyring(path)
        if only_if_missing:
            return keyring
        old = path.read_text()
    new = SECRET_KEY_PREFIX + base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{os.getpid()}")
    own.unlink(missing_ok=True)
    descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{new}\n{old}")
        file.flush()
        os.fsync(file.fileno())
    own.replace(path)
    return load_keyring(path)


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse(path: Path, number: int, line: str) -> bytes:
    text = line.strip()
    try:
        if not text.startswith(SECRET_KEY_PREFIX):
            raise ValueError
        raw = base64.b64decode(text.removeprefix(SECRET_KEY_PREFIX), validate=True)
        if len(raw) != KEY_BYTES:
            raise ValueError
    except (ValueError, binascii.Error):
        # The line is not repeated: it is secret.
        raise SettingsError(f"secret_key_file {path}: line {number} is no key") from None
    return raw
