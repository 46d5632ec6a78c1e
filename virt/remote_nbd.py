"""Reads an export of an NBD server: as much of the protocol as a whole image and a look take.

Fixed newstyle handshake, NBD_OPT_GO, simple replies. QEMU speaks to the server by itself; this is
for what Innkeeper verifies, so nothing here ever interprets the bytes.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Self

from innkeeper.remote_source import RemoteSource
from virt.image_source import (
    CHUNK_BYTES,
    Delivery,
    TransferBroken,
    TransferRefused,
)

ANSWER_TIMEOUT_S = 10.0

_GREETING = b"NBDMAGIC"
_OPTION = b"IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_MAGIC = 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO = 7
_REP_ACK, _REP_INFO, _REP_ERROR = 1, 3, 1 << 31
_INFO_EXPORT = 0
_CMD_READ, _CMD_DISC = 0, 2
_REPLY_MAX_BYTES = 4096
_REPLIES_MAX = 32


class NbdExport:
    """An open export.

    Args:
        source: an ``nbd`` source.
        timeout_s: seconds for each answer.

    Raises:
        TransferBroken: the server does not answer, or breaks off.
        TransferRefused: it has no such export, or speaks another protocol.
    """

    def __init__(self, source: RemoteSource, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._cookie = 0
        try:
            self._socket = socket.create_connection((source.host, source.port), timeout=timeout_s)
            self._socket.settimeout(timeout_s)
        except OSError as error:
            raise TransferBroken(str(error)) from error
        try:
            self.size_bytes = self._go(source.path.removeprefix("/"))
        except BaseException:
            self._socket.close()
            raise

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Return bytes of the export."""
        self._cookie += 1
        self._send(
            struct.pack(
                ">IHHQQI", _REQUEST_MAGIC, 0, _CMD_READ, self._cookie, offset_bytes, size_bytes
            )
        )
        magic, problem, cookie = struct.unpack(">IIQ", self._receive(16))
        if magic != _SIMPLE_MAGIC or cookie != self._cookie:
            raise TransferRefused("the server does not speak NBD as it was asked to")
        if problem:
            raise TransferBroken(f"the NBD server failed with error {problem}")
        return self._receive(size_bytes)

    def close(self) -> None:
        """Say goodbye; a server that is gone is fine."""
        with suppress(OSError):
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _CMD_DISC, 0, 0, 0))
        self._socket.close()

    def _go(self, name: str) -> int:
        if self._receive(16) != _GREETING + _OPTION:
            raise TransferRefused("the server is no NBD server of today")
        (flags,) = struct.unpack(">H", self._receive(2))
        if not flags & _FIXED_NEWSTYLE:
            raise TransferRefused("the NBD server is too old")
        export = name.encode()
        self._send(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._send(_OPTION + struct.pack(">II", _OPT_GO, len(body)) + body)
        size_bytes: int | None = None
        for _ in range(_REPLIES_MAX):
            magic, _option, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _REPLY_MAGIC or length > _REPLY_MAX_BYTES:
                raise TransferRefused("the server does not speak NBD as it was asked to")
            data = self._receive(length)
            if kind & _REP_ERROR:
                raise TransferRefused(f"the NBD server has no export {name!r} for us")
            if kind == _REP_INFO and length >= 10 and data[:2] == struct.pack(">H", _INFO_EXPORT):
                (size_bytes,) = struct.unpack(">Q", data[2:10])
            if kind == _REP_ACK and size_bytes is not None:
                return size_bytes
        raise TransferRefused("the NBD server told no size")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise TransferBroken(str(error)) from error

    def _receive(self, size_bytes: int) -> bytes:
        buffer = bytearray(size_bytes)
        view = memoryview(buffer)
        while view:
            try:
                got = self._socket.recv_into(view)
            except OSError as error:
                raise TransferBroken(str(error)) from error
            if got == 0:
                raise TransferBroken("the NBD server has closed the connection")
            view = view[got:]
        return bytes(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NbdSource:
    """An NBD export as an image's source; NBD tells no versions, so a broken one begins anew."""

    can_resume = False

    def __init__(self, source: RemoteSource) -> None:
        self._source = source

    @contextmanager
    def open(
        self,
        offset_bytes: int,  # noqa: ARG002 -- a rest cannot be trusted to be of the same version
        *,
        resume: str,  # noqa: ARG002
        known: str,  # noqa: ARG002
    ) -> Iterator[Delivery]:
        """See ImageSource."""
        with closing(NbdExport(self._source)) as export:
            yield Delivery(
                chunks=_chunks(export),
                offset_bytes=0,
                total_bytes=export.size_bytes,
                validator="",
            )


def _chunks(export: NbdExport) -> Iterator[bytes]:
    for offset in range(0, export.size_bytes, CHUNK_BYTES):
        yield export.read(offset, min(CHUNK_BYTES, export.size_bytes - offset))
