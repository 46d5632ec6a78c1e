"""Commands as Redis clients send them: cut out of a stream of bytes, and built again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


class NotRedisError(ValueError):
    """The stream is not what a Redis client sends."""


@dataclass(frozen=True, slots=True)
class Command:
    """One whole command.

    Args:
        raw: the command as it came.
        spans: where in it each word stands.
    """

    raw: bytes
    spans: tuple[tuple[int, int], ...]

    def word(self, index: int) -> bytes:
        """Return a word; empty when the command has fewer."""
        if index >= len(self.spans):
            return b""
        start, end = self.spans[index]
        return self.raw[start:end]

    def words(self) -> list[bytes]:
        """Return all words."""
        return [self.raw[start:end] for start, end in self.spans]


class CommandReader:
    """Cuts a client's bytes into whole commands, wherever the network has cut them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        # Until so many bytes are there, a second look at a large command is in vain.
        self._wanted_bytes = 1

    @property
    def rest(self) -> bytes:
        """What has come of a command that is not whole yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> Iterator[Command]:
        """Take what has come and yield each command that is whole now.

        Raises:
            NotRedisError: the stream is something else; `rest` has what was not yielded.
        """
        self._buffer += data
        while len(self._buffer) >= self._wanted_bytes:
            found = self._cut()
            if found is None:
                return
            yield found
            self._wanted_bytes = 1

    def _cut(self) -> Command | None:
        buffer = self._buffer
        header_end = buffer.find(b"\n")
        if header_end < 0:
            self._wanted_bytes = len(buffer) + 1
            return None
        if buffer[0] != ord("*"):
            # Inline: typed by a person or a probe; passed on, never bent.
            return self._take(header_end + 1, ())
        spans: list[tuple[int, int]] = []
        position = header_end + 1
        for _ in range(_number(buffer[1:header_end])):
            line_end = buffer.find(b"\n", position)
            if line_end < 0:
                self._wanted_bytes = len(buffer) + 1
                return None
            if buffer[position] != ord("$"):
                raise NotRedisError(f"no bulk string: {bytes(buffer[position:line_end])!r}")
            start = line_end + 1
            end = start + _number(buffer[position + 1 : line_end])
            position = end + 2
            if position > len(buffer):
                self._wanted_bytes = position
                return None
            spans.append((start, end))
        return self._take(position, tuple(spans))

    def _take(self, end: int, spans: tuple[tuple[int, int], ...]) -> Command:
        raw = bytes(self._buffer[:end])
        del self._buffer[:end]
        return Command(raw, spans)


def _number(digits: bytes | bytearray) -> int:
    try:
        return int(digits)
    except ValueError:
        raise NotRedisError(f"no number: {bytes(digits[:40])!r}") from None


def encode(*words: bytes) -> bytes:
    """Return a command as bytes for the wire."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)
