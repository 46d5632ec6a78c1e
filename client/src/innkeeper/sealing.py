"""Secrets on their way: encrypted to the workers' public key, so that only workers read them.

A sealed text may stand in messages, in rows and in logs; who made it cannot open it again. It needs
PyNaCl: ``pip install 'innkeeper[seal]'``.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from innkeeper.errors import InvalidRequest
from innkeeper.guest_parts import SEALED_PREFIX, is_sealed

PUBLIC_KEY_PREFIX = "public:v1:"
KEY_BYTES = 32


def seal(public_key: str, plaintext: bytes | str) -> str:
    """Encrypt a secret so that only Innkeeper's workers can read it.

    Args:
        public_key: the workers', ``public:v1:…``; see ``Innkeeper.public_key``.
        plaintext: the secret; a str is taken as UTF-8.

    Returns:
        ``sealed:v1:…``, another text every time.

    Raises:
        InvalidRequest: the key is none, or PyNaCl is not installed.
    """
    try:
        from nacl.exceptions import CryptoError
        from nacl.public import PublicKey, SealedBox
    except ImportError:
        raise InvalidRequest(
            "Sealing needs PyNaCl, which is not installed.",
            {"hint": "Install the client with it: pip install 'innkeeper[seal]'."},
        ) from None
    data = plaintext.encode() if isinstance(plaintext, str) else bytes(plaintext)
    try:
        box = SealedBox(PublicKey(parse_public_key(public_key)))
        return SEALED_PREFIX + base64.b64encode(box.encrypt(data)).decode()
    except (CryptoError, ValueError):
        # A point of low order: X25519 would agree on a secret that everybody knows.
        raise _not_a_key() from None


def parse_public_key(text: str) -> bytes:
    """Return the key's bytes.

    Raises:
        InvalidRequest: it is no public key of Innkeeper's.
    """
    encoded = text.strip()
    if not encoded.startswith(PUBLIC_KEY_PREFIX):
        raise _not_a_key()
    try:
        raw = base64.b64decode(encoded.removeprefix(PUBLIC_KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise _not_a_key() from None
    if len(raw) != KEY_BYTES:
        raise _not_a_key()
    return raw


def encode_public_key(raw: bytes) -> str:
    """Return a public key as text."""
    return PUBLIC_KEY_PREFIX + base64.b64encode(raw).decode()


def without_sealing(value: Any) -> Any:
    """Return JSON in which all sealed texts are the same.

    Sealing the same secret twice gives two texts that nobody can compare, and a request that is
    sent twice under one idempotency key must be the same request.
    """
    if isinstance(value, str):
        return SEALED_PREFIX if is_sealed(value) else value
    if isinstance(value, Mapping):
        return {key: without_sealing(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_sealing(each) for each in value]
    return value


def _not_a_key() -> InvalidRequest:
    # What was given is not repeated: it may be the secret, in the wrong place.
    return InvalidRequest(
        f"The public key is not of the form {PUBLIC_KEY_PREFIX}<base64 of {KEY_BYTES} bytes>.",
        {"hint": "Print the workers' key with innkeeper public-key, and pin that."},
    )
