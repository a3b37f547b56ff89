"""Frames by chance: from calls that are right but for what they say, to bytes that are nothing at all.

Left out is what may rightly end the pod: a sandbox that is created could be stopped by its id. `VICTIM` is a container
that may be killed, frozen or deleted on the way; that of the bystander is never named.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from shim.api import logs, sandbox, task
from shim.api.codec import encode
from shim.ttrpc.connection import NAMESPACE, TRACEPARENT
from tests.e2e.ttrpc.abuse import DATA, MAX_PAYLOAD, REQUEST, frame, request
from tests.wire.samples import random_message

VICTIM = "victim"
IDS = (VICTIM, VICTIM, "nobody", "", "..", "a/b", "x" * 300)
SERVICES = {
    task.SERVICE_V2: task.METHODS,
    task.SERVICE_V3: task.METHODS,
    logs.SERVICE: logs.METHODS,
    sandbox.SERVICE: {name: kinds for name, kinds in sandbox.METHODS.items() if name != "CreateSandbox"},
}
# What is answered when something has ended, which may be never.
WAITS = ("Wait", "WaitSandbox")


@dataclass(frozen=True)
class Thrown:
    """A frame; `answered` says that its stream has to be."""

    data: bytes
    answered: bool


def a_request(chance: random.Random) -> tuple[bytes, bool]:
    """What a frame of type request holds, and whether an answer must come."""
    service = chance.choice(tuple(SERVICES))
    method = chance.choice(tuple(SERVICES[service]))
    message = random_message(chance, SERVICES[service][method][0], chance.choice((0.0, 0.3, 0.9)))
    for field in ("id", "exec_id", "sandbox_id"):
        if hasattr(message, field):
            setattr(message, field, chance.choice(IDS) if field != "exec_id" else chance.choice(("", "e1")))
    payload = damaged(chance, encode(message))
    if chance.random() < 0.05:
        method = method[: chance.randrange(len(method))] + chance.choice(("", "x", "é", "\0"))
    if chance.random() < 0.05:
        service = chance.choice(("", "containerd", service.upper(), "x" * 5000))
    metadata = [(chance.choice((NAMESPACE, TRACEPARENT, "x")), "y" * chance.choice((0, 5, 55, 20_000)))]
    timeout_ns = chance.choice((0, 0, 0, 1, 50_000_000, -1, (1 << 63) - 1))
    asked = request(method, payload, service, tuple(metadata[: chance.randrange(2)]), timeout_ns)
    # A damaged one may say Wait by chance, as whatever else.
    hurt = damaged(chance, asked, 0.05)
    return hurt, method not in WAITS and hurt is asked


def damaged(chance: random.Random, data: bytes, how_often: float = 0.3) -> bytes:
    """Those bytes, or what is left of them."""
    if chance.random() >= how_often or not data:
        return data
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        at = chance.randrange(len(data))
        return data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :]
    if kind == 2:
        at = chance.randrange(len(data))
        return data[:at] + chance.randbytes(chance.randrange(1, 40)) + data[at:]
    return chance.randbytes(chance.randrange(1, 400))


def a_frame(chance: random.Random, stream_id: int) -> Thrown:
    """The next on a connection, whose next stream would be that one."""
    kind = chance.random()
    if kind < 0.8:
        asked, answered = a_request(chance)
        return Thrown(frame(stream_id, asked, REQUEST, chance.choice((0, 0, 0, 1, 2, 3, 255))), answered)
    if kind < 0.9:  # another stream, type or flags
        number = chance.choice((0, 1, 2, stream_id - 1, stream_id + 1, max(0, stream_id - 2)))
        types = (REQUEST, DATA, chance.randrange(256)) if number < stream_id else (DATA, 0, 2, 77)
        asked, _answered = a_request(chance)
        return Thrown(frame(number, asked, chance.choice(types), chance.randrange(256)), False)
    if kind < 0.99:
        return Thrown(frame(stream_id, chance.randbytes(chance.randrange(2000))), False)
    excess = MAX_PAYLOAD + chance.randrange(1, 1000)
    return Thrown(frame(stream_id, bytes(excess)), True)
