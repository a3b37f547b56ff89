"""A manager on a unix socket that answers as it is told, for tests of the bus and of the systemd driver."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jeepney.low_level import Endianness, Header, HeaderFields, Message, MessageFlag, MessageType, Parser

Answer = tuple[str, tuple[Any, ...]]  # signature and body
JOB = "/org/freedesktop/systemd1/job/7"


class Refusal(Exception):
    """An error reply of that D-Bus name."""


class FakeSystemd:
    """Serves connections one after the other. `answers` by member; `calls` are all that came, with their bodies."""

    def __init__(self, path: Path, answers: dict[str, Callable[..., Answer]] | None = None) -> None:
        self.path = str(path)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.job_result = "done"
        self.signals_first = True
        self.authentication: tuple[bytes, ...] = (b"DATA", b"OK 1234")
        self.answers: dict[str, Callable[..., Answer]] = {
            "Hello": lambda: ("s", (":1.7",)),
            "AddMatch": lambda _rule: ("", ()),
            "Subscribe": lambda: ("", ()),
            "ResetFailedUnit": lambda _unit: ("", ()),
            "StopUnit": lambda _unit, _mode: ("o", (JOB,)),
            "StartTransientUnit": lambda *_arguments: ("o", (JOB,)),
            "SetUnitProperties": lambda *_arguments: ("", ()),
            "AttachProcessesToUnit": lambda *_arguments: ("", ()),
            "Get": self._get,
        }
        self.properties: dict[str, tuple[str, Any]] = {
            "Version": ("s", "252.38-1~deb12u1"),
            "ControlGroup": ("s", "/a.slice/p-c.scope"),
        }
        self.answers.update(answers or {})
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def members(self) -> list[str]:
        """The calls to systemd by name."""
        return [name for name, _body in self.calls if name not in ("Hello", "AddMatch", "Subscribe", "Get")]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _get(self, _interface: str, name: str) -> Answer:
        return "v", (self.properties[name],)

    def _serve(self) -> None:
        while True:
            try:
                peer, _address = self._listener.accept()
            except OSError:
                return
            with peer:
                try:
                    self._talk(peer)
                except OSError:
                    continue

    def _talk(self, peer: socket.socket) -> None:
        greeting = b""
        while b"BEGIN\r\n" not in greeting:
            greeting += peer.recv(4096)
        for line in self.authentication:
            peer.sendall(line + b"\r\n")
        parser = Parser()
        serial = 0
        while data := peer.recv(65536):
            parser.add_data(data)
            while (message := parser.get_next_message()) is not None:
                serial += 2
                for each in self._messages(message, serial):
                    peer.sendall(each)

    def _messages(self, message: Message, serial: int) -> list[bytes]:
        member = message.header.fields[HeaderFields.member]
        self.calls.append((member, message.body))
        to: dict[HeaderFields, Any] = {HeaderFields.reply_serial: message.header.serial}
        try:
            signature, body = self.answers[member](*message.body)
        except Refusal as refusal:
            fields = to | {HeaderFields.error_name: str(refusal), HeaderFields.signature: "s"}
            return [_bytes(MessageType.error, fields, ("it said no",), serial)]
        if signature:
            to |= {HeaderFields.signature: signature}
        reply = _bytes(MessageType.method_return, to, body, serial)
        if member not in ("StartTransientUnit", "StopUnit"):
            return [reply]
        others = self._job_removed("/org/freedesktop/systemd1/job/6", "canceled", serial + 1)
        ours = self._job_removed(JOB, self.job_result, serial + 1)
        return [others, ours, reply] if self.signals_first else [reply, others, ours]

    def _job_removed(self, job: str, result: str, serial: int) -> bytes:
        fields = {
            HeaderFields.path: "/org/freedesktop/systemd1",
            HeaderFields.interface: "org.freedesktop.systemd1.Manager",
            HeaderFields.member: "JobRemoved",
            HeaderFields.signature: "uoss",
        }
        return _bytes(MessageType.signal, fields, (7, job, "p-c.scope", result), serial)


def _bytes(kind: MessageType, fields: dict[HeaderFields, Any], body: tuple[Any, ...], serial: int) -> bytes:
    return Message(Header(Endianness.little, kind, MessageFlag(0), 1, -1, serial, fields), body).serialise(
        serial
    )
