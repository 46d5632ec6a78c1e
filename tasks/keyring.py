"""The workers' private keys: open what callers have sealed."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from innkeeper.errors import SecretUnreadable
from innkeeper.guest_parts import SEALED_PREFIX
from innkeeper.sealing import encode_public_key

if TYPE_CHECKING:
    from nacl.public import PrivateKey


class Keyring:
    """Private keys, the newest first; none is fine as long as nobody sends secrets.

    Args:
        secrets: the keys' 32 bytes each.
    """

    def __init__(self, secrets: Sequence[bytes] = ()) -> None:
        self._secrets = tuple(secrets)
        self._keys: tuple[PrivateKey, ...] | None = None

    def __repr__(self) -> str:
        return f"Keyring({len(self._secrets)} keys)"

    def __len__(self) -> int:
        return len(self._secrets)

    @property
    def public_key(self) -> str | None:
        """The newest key's public half, to which secrets are to be sealed; None without a key."""
        keys = self._load()
        return encode_public_key(bytes(keys[0].public_key)) if keys else None

    def list_public(self) -> list[tuple[str, str]]:
        """Return each key's fingerprint and public half, the newest first."""
        halves = [bytes(key.public_key) for key in self._load()]
        return [(fingerprint(half), encode_public_key(half)) for half in halves]

    def unseal(self, text: str, *, path: str) -> tuple[bytes, str]:
        """Open a sealed text.

        Args:
            text: ``sealed:v1:…``.
            path: the field it stands in, for the error.

        Returns:
            The secret, and the fingerprint of the key that opened it.

        Raises:
            SecretUnreadable: none of the keys opens it.
        """
        from nacl.exceptions import CryptoError
        from nacl.public import SealedBox

        try:
            box = base64.b64decode(text.removeprefix(SEALED_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise self._unreadable(path, "it is not base64") from None
        for key in self._load():
            try:
                return SealedBox(key).decrypt(box), fingerprint(bytes(key.public_key))
            except (CryptoError, ValueError):
                continue
        reason = "no key fits" if self._secrets else "this worker has no key"
        raise self._unreadable(path, reason)

    def _load(self) -> "tuple[PrivateKey, ...]":
        if self._keys is None:
            # Only a worker that has to do with secrets pays for the import.
            from nacl.public import PrivateKey

            self._keys = tuple(PrivateKey(secret) for secret in self._secrets)
        return self._keys

    def _unreadable(self, path: str, reason: str) -> SecretUnreadable:
        return SecretUnreadable(
            f"The sealed text in {path} cannot be opened: {reason}.",
            {"path": path, "reason": reason, "keys": len(self._secrets)},
        )


def fingerprint(public_key: bytes) -> str:
    """Return a short name of a key, by which rows tell which one they need."""
    return hashlib.sha256(public_key).hexdigest()[:16]
