"""Lines of a container log as the kubelet reads them: `TIME STREAM TAG CONTENT`, with P for a part and F for an end.

Bytes in, bytes out: no file is known here. A whole block of lines is tagged by one `bytes.replace`, with the time at
which it was read, so a flood costs little more than its copying. As containerd's own logger does, a line is cut into
parts where it grows too long, a carriage return before its end goes, and text at the end of a stream that no line feed
ends is a part. Content is neither escaped nor decoded.
"""

from __future__ import annotations

import time

# containerd's and CRI-O's default, and what their readers are made for; a line costs that much memory at most.
MAX_LINE_BYTES = 16 * 1024


class Clock:
    """Times as RFC 3339 has them, in UTC with nanoseconds; the second is worked out once for all that are in it."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def stamp(self, now_ns: int) -> bytes:
        """`now_ns` since 1970 as text."""
        second, nanoseconds = divmod(now_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode("ascii")
        return b"%b.%09dZ" % (self._text, nanoseconds)


class LineTagger:
    """One stream, `name` being stdout or stderr. Holds back at most `most` bytes and one: a line that is not over."""

    __slots__ = ("_clock", "_most", "_name", "_rest")

    def __init__(self, name: str, clock: Clock, most: int = MAX_LINE_BYTES) -> None:
        self._name = name.encode("ascii")
        self._clock = clock
        self._most = most
        self._rest = b""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """What `data`, read at `now_ns`, adds to the log: whole lines."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        stamp = self._clock.stamp(now_ns)
        full = b"%b %b F " % (stamp, self._name)
        pieces: list[bytes] = []
        start, end, most = 0, len(data), self._most
        while start < end:
            # The last line that ends within reach; all before it are no longer than they may be, then.
            cut = data.rfind(b"\n", start, start + most + 1)
            if cut >= 0:
                pieces += (full, data[start:cut].replace(b"\n", b"\n" + full), b"\n")
                start = cut + 1
            elif end - start > most:
                pieces += (b"%b %b P " % (stamp, self._name), data[start : start + most], b"\n")
                start += most
            else:
                break
        self._rest = data[start:]
        return b"".join(pieces)

    def end(self, now_ns: int) -> bytes:
        """The stream has ended: what was held back, as a part."""
        rest, self._rest = self._rest, b""
        return b"%b %b P %b\n" % (self._clock.stamp(now_ns), self._name, rest) if rest else b""
