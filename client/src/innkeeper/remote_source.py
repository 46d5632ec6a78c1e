"""The address of an image that a guest reads while it runs: plain enough to mean one thing only.

It stands in the domain's XML, in the disk's header and on QEMU's command line, where every user of
the host can read it, and each of them has escaping rules of its own. So it carries no secret, and
nothing that would have to be escaped.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import urlsplit

Scheme = Literal["http", "https", "nbd"]
DEFAULT_PORTS: Final[dict[str, int]] = {"http": 80, "https": 443, "nbd": 10809}
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~@:+=,-]+)*")


@dataclass(frozen=True)
class RemoteSource:
    """An image on a server.

    Args:
        scheme: ``http``, ``https`` or ``nbd``.
        host: a name or an IPv4 address.
        port: TCP port.
        path: with its leading slash; of an NBD server the export's name follows the slash.
    """

    scheme: Scheme
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The address in its one form."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"

    def is_below(self, prefix: "RemoteSource") -> bool:
        """Return whether the prefix names this source or a directory above it."""
        mine, theirs = ((one.scheme, one.host.lower(), one.port) for one in (self, prefix))
        if mine != theirs:
            return False
        return prefix.path == "" or f"{self.path}/".startswith(f"{prefix.path}/")


def parse_remote_source(url: str) -> RemoteSource:
    """Return the parts of an address.

    Args:
        url: ``http(s)://host[:port]/path`` or ``nbd://host[:port][/export]``.

    Raises:
        ValueError: why a guest cannot boot from it; the message repeats nothing secret.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("it is no URL") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError("it is no http(s) or nbd URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user or password in it would be readable on QEMU's command line")
    if "?" in url or "#" in url:
        raise ValueError(
            "a query (a signature, say) in it would be readable on QEMU's command line; "
            "use delivery: fetch for signed URLs"
        )
    if parts.hostname is None or not _HOST.fullmatch(parts.hostname):
        raise ValueError("its host must be a name or an IPv4 address")
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError(
            "its path may hold letters, digits and . _ ~ @ : + = , - only, and no dots alone"
        )
    scheme = cast("Scheme", parts.scheme)
    return RemoteSource(scheme, parts.hostname, port or DEFAULT_PORTS[scheme], path)
