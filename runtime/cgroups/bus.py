"""A D-Bus connection for the few calls that a cgroup needs: no names of our own, no objects, one call at a time.

jeepney turns messages into bytes and back; the socket, its time limits and the order of things are here. Loaded
by `systemd` alone.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageFlag, MessageType, Parser

from runtime.errors import CgroupError
from runtime.waiting import Readable, Writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.waiting import Operation

TIMEOUT_S = 30.0
_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_SYSTEMD_PRIVATE = "/run/systemd/private"
_SYSTEMD = "org.freedesktop.systemd1"
_BUS = "org.freedesktop.DBus"
_CHUNK = 65_536
_MOST_UNREAD = 1 << 20  # a peer that sends so much without answering is none
_MOST_SIGNALS = 10_000
_VERSION = 1


class BusError(CgroupError):
    """An error reply; `name` is D-Bus's for it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def system_sockets() -> tuple[str, ...]:
    """Where the system's manager is: by the bus, or where there is none (early in a boot) directly, if we are root."""
    return (_SYSTEM_BUS, _SYSTEMD_PRIVATE) if os.geteuid() == 0 else (_SYSTEM_BUS,)


def session_sockets() -> tuple[str, ...]:
    """Where this user's manager is: its session bus by the environment, or the manager itself."""
    found = []
    if (path := session_path(os.environ.get("DBUS_SESSION_BUS_ADDRESS", ""))) is not None:
        found.append(path)
    if runtime := os.environ.get("XDG_RUNTIME_DIR", ""):
        found += [each for each in (f"{runtime}/bus", f"{runtime}/systemd/private") if each not in found]
    if not found:
        raise CgroupError(
            "no session bus for the systemd cgroup driver: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
        )
    return tuple(found)


def session_path(addresses: str) -> str | None:
    """The first unix socket among `addresses` of the D-Bus specification; with NUL in front an abstract one."""
    for address in addresses.split(";"):
        transport, _colon, rest = address.partition(":")
        keys = dict(pair.partition("=")[::2] for pair in rest.split(",") if "=" in pair)
        if transport == "unix" and "path" in keys:
            return _unescape(keys["path"])
        if transport == "unix" and "abstract" in keys:
            return "\0" + _unescape(keys["abstract"])
    return None


def _unescape(text: str) -> str:
    first, *rest = text.split("%")
    try:
        return first + "".join(chr(int(each[:2], 16)) + each[2:] for each in rest)
    except ValueError:
        return text


def connect(sockets: tuple[str, ...]) -> Operation[Connection]:
    """A connection to systemd by the first of `sockets` that takes one; CgroupError with the reasons if none does."""
    refusals = []
    for path in sockets:
        peer = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        connection = Connection(peer, is_bus="/systemd/private" not in path)
        try:
            peer.connect(path)
            yield from connection.begin()
        except (OSError, CgroupError) as error:
            connection.close()
            cause = error.strerror if isinstance(error, OSError) else error
            refusals.append(f"{path.replace(chr(0), '@')}: {cause}")
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise CgroupError(f"connect to systemd: {'; '.join(refusals)}")


class Connection:
    """A connection to systemd, by a bus or without. Each call has `TIMEOUT_S` in all."""

    def __init__(self, peer: _socket.socket, is_bus: bool) -> None:
        self._peer = peer
        self._is_bus = is_bus
        self._parser = Parser()
        self._serial = 0
        self._signals: list[tuple[str, tuple[Any, ...]]] = []
        self._deadline = time.monotonic() + TIMEOUT_S

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._peer.close()

    def begin(self) -> Operation[None]:
        """Authenticate as who we are, and greet the bus.

        We don't say our uid: in a user namespace it is another one outside. The socket's peer tells it. All in
        one message, as sd-bus does: a manager that reads the first call together with BEGIN does not answer it
        (seen with systemd 252).
        """
        yield from self._send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
        first, rest = yield from self._line(b"")
        second = first
        if first == b"DATA" or first.startswith(b"OK "):  # both lines of ours are answered
            second, rest = yield from self._line(rest)
        if not second.startswith(b"OK "):
            raise CgroupError(f"D-Bus authentication refused: {second[:100].decode('ascii', 'replace')}")
        if rest:
            self._parser.add_data(rest)
        if self._is_bus:
            yield from self.call("/org/freedesktop/DBus", _BUS, "Hello", to=_BUS)

    def _line(self, data: bytes) -> Operation[tuple[bytes, bytes]]:
        while b"\r\n" not in data:
            if len(data) > 4096:
                raise CgroupError("D-Bus authentication: no end of a line")
            data += yield from self._receive()
        line, _end, rest = data.partition(b"\r\n")
        return line, rest

    def listen(self, path: str, interface: str, member: str) -> Operation[None]:
        """Have signals sent to us, for `next_signal`. Without a bus they come by themselves."""
        if self._is_bus:
            rule = (
                f"type='signal',sender='{_SYSTEMD}',path='{path}',interface='{interface}',member='{member}'"
            )
            yield from self.call("/org/freedesktop/DBus", _BUS, "AddMatch", "s", (rule,), to=_BUS)

    def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        to: str = _SYSTEMD,
    ) -> Operation[tuple[Any, ...]]:
        """A method's reply. BusError for an error reply, CgroupError when none comes or the connection ends."""
        self._deadline = time.monotonic() + TIMEOUT_S
        self._serial += 1
        serial = self._serial
        fields = {HeaderFields.path: path, HeaderFields.interface: interface, HeaderFields.member: member}
        if self._is_bus:
            fields[HeaderFields.destination] = to
        if signature:
            fields[HeaderFields.signature] = signature
        header = Header(
            Endianness.little, MessageType.method_call, MessageFlag(0), _VERSION, -1, serial, fields
        )
        yield from self._send(Message(header, body).serialise(serial))
        while True:
            message = yield from self._message(member)
            if message.header.fields.get(HeaderFields.reply_serial) != serial:
                self._keep(message)
            elif message.header.message_type is MessageType.error:
                name = str(message.header.fields.get(HeaderFields.error_name, ""))
                text = message.body[0] if message.body and isinstance(message.body[0], str) else name
                raise BusError(name, f"systemd: {member}: {text}")
            else:
                return tuple(message.body)

    def next_signal(self, member: str) -> Operation[tuple[Any, ...]]:
        """The body of the next signal `member`, those that came before a reply included. CgroupError in time."""
        self._deadline = time.monotonic() + TIMEOUT_S
        while True:
            for index, (name, body) in enumerate(self._signals):
                if name == member:
                    del self._signals[index]
                    return body
            self._keep((yield from self._message(member)))

    def _keep(self, message: Message) -> None:
        if message.header.message_type is MessageType.signal and len(self._signals) < _MOST_SIGNALS:
            self._signals.append((str(message.header.fields.get(HeaderFields.member, "")), message.body))

    def _message(self, waiting_for: str) -> Operation[Message]:
        unread = 0
        while True:
            try:
                message = self._parser.get_next_message()
            except (ValueError, LookupError, struct.error) as error:
                raise CgroupError(f"systemd: {waiting_for}: an answer that is not D-Bus") from error
            if message is not None:
                return message
            data = yield from self._receive(waiting_for)
            unread += len(data)
            if unread > _MOST_UNREAD:
                raise CgroupError(f"systemd: {waiting_for}: a message of more than {_MOST_UNREAD} bytes")
            self._parser.add_data(data)

    def _receive(self, waiting_for: str = "authentication") -> Operation[bytes]:
        while True:
            try:
                data = self._peer.recv(_CHUNK)
            except BlockingIOError:
                try:
                    yield Readable(self._peer.fileno(), self._time_left(waiting_for))
                except TimeoutError:
                    raise CgroupError(f"systemd: {waiting_for}: no answer within {TIMEOUT_S:g} s") from None
                continue
            if not data:
                raise CgroupError(f"systemd: {waiting_for}: the connection was closed")
            return data

    def _send(self, data: bytes) -> Operation[None]:
        while data:
            try:
                data = data[self._peer.send(data) :]
            except BlockingIOError:
                try:
                    yield Writable(self._peer.fileno(), self._time_left("send"))
                except TimeoutError:
                    raise CgroupError(f"systemd takes no message within {TIMEOUT_S:g} s") from None

    def _time_left(self, waiting_for: str) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise CgroupError(f"systemd: {waiting_for}: no answer within {TIMEOUT_S:g} s")
        return left
