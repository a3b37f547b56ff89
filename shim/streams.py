"""Calls that stream both ways, as their methods see them: messages in, messages out, and who has said all.

A method is called with its `Stream` and returns who listens to it. What is said is sent as one frame; whoever has
much to say waits for room after each, so that a caller who reads slowly makes nobody hold more than that one.
"""

from __future__ import annotations

from runtime.record import Record
from shim.ttrpc.connection import StreamGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from shim.api.ttrpc import Status
    from shim.ttrpc.connection import ServerConnection

    class Listener(Protocol):
        """Who is told what happens on a stream."""

        def message(self, payload: bytes) -> None:
            """The caller has said something."""

        def closed(self) -> None:
            """The caller has said all."""

        def room(self) -> None:
            """What was sent has left, and there is room for more; told only after there was none."""

        def gone(self) -> None:
            """The caller is not there any more, and nothing can be said to it."""

    class Door(Protocol):
        """What a stream needs of its connection."""

        protocol: ServerConnection

        @property
        def has_room(self) -> bool:
            """True if nothing waits to be sent."""

        def send(self, data: bytes) -> None:
            """Send bytes, now or as soon as there is room."""

        def limit_unsent(self, size: int) -> None:
            """Have the kernel hold no more than about `size` bytes for the caller."""

        def forget_stream(self, stream_id: int) -> None:
            """It is over for both sides."""


class StreamMethod(Record):
    """A method that streams both ways: `opens` is called with the stream and says who listens."""

    opens: Callable[[Stream], Listener]


class Stream:
    """One of them. `listener` may be replaced at any time."""

    __slots__ = ("_door", "_id", "ended", "heard_all", "listener")

    def __init__(self, door: Door, stream_id: int, method: StreamMethod) -> None:
        self._door = door
        self._id = stream_id
        self.ended = False  # by us
        self.heard_all = False  # the caller has ended its side
        self.listener = method.opens(self)

    @property
    def has_room(self) -> bool:
        """True if all that was sent is out of our hands."""
        return self._door.has_room

    def send(self, payload: bytes) -> None:
        """Say something; nothing happens when the stream has ended."""
        try:
            self._door.send(self._door.protocol.send_data(self._id, payload))
        except StreamGone:
            pass  # the caller broke the protocol meanwhile; the listener hears of it

    def end(self) -> None:
        """Say that this was all. The caller is listened to until it has said all as well."""
        if not self.ended:
            self.ended = True
            try:
                self._door.send(self._door.protocol.end_stream(self._id))
            except StreamGone:
                pass
            if self.heard_all:
                self._door.forget_stream(self._id)

    def fail(self, status: Status) -> None:
        """End it with a failure; nobody listens any more."""
        if not self.ended:
            self.ended = True
            try:
                self._door.send(self._door.protocol.fail(self._id, status))
            except StreamGone:
                pass
        self._door.forget_stream(self._id)

    def limit_unsent(self, size: int) -> None:
        """Have the kernel hold no more than about `size` bytes for the caller."""
        self._door.limit_unsent(size)


class _Deaf:
    def message(self, _payload: bytes) -> None:
        pass

    def closed(self) -> None:
        pass

    def room(self) -> None:
        pass

    def gone(self) -> None:
        pass


# Who listens when it does not matter any more what a caller says.
DEAF = _Deaf()
