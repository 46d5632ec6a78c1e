"""A file for a guest, with its bytes in the clear; only ever held in memory."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFile:
    """A file that a guest gets.

    Args:
        path: absolute path in the guest.
        content: its bytes; kept out of every representation.
        owner: ``user`` or ``user:group``.
        mode: octal digits: ``0644``.
    """

    path: str
    content: bytes = field(repr=False)
    owner: str
    mode: str
