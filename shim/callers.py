"""Who is connected to a shim, and what it holds for all of them together: bounds that no crowd of callers can pass.

What one caller may do is bounded where it is served (`server`); many could fill the memory all the same, or take all
places. So two things are decided here, by order alone:

* Whoever has made a call keeps its place for as long as it likes, since containerd takes the end of a connection for
  the end of the shim. Of those who have said nothing yet, the first to come makes room for another.
* Of what has come of half a message, waits for its turn, or is not read by its caller, MAX_HELD_BYTES are held.
  Beyond that, whoever has held much for the longest time is cut off.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Caller(Protocol):
        """A connection."""

        held: int  # what is held for it, in bytes, as was told last

        def close(self) -> None:
            """Cut it off, and say so by `leave`."""


# containerd has one connection a container.
MAX_CALLERS = 512
MAX_HELD_BYTES = 32 << 20
# Nobody is cut off for so little: that much for all of them is a part of the whole.
FREE_BYTES = 16 << 10
# Memory of which so much was held at once has holes, and is worth giving back; that of so many calls as well.
MUCH_BYTES = 1 << 20
MANY_CALLS = 2048


class Callers:
    """One per server. `cut_off` is told in words whom this ends, and why; `relieved`, when much is held no more."""

    def __init__(self, cut_off: Callable[[str], None], relieved: Callable[[], None]) -> None:
        self._cut_off = cut_off
        self._relieved = relieved
        self._had_much = False
        self._had_many = False
        self._all: set[Caller] = set()
        self._silent: dict[Caller, None] = {}  # in the order in which they came
        self._large: dict[Caller, None] = {}  # in the order in which they began to hold much
        self.held = 0

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> list[Caller]:
        """All of them."""
        return list(self._all)

    def has_room(self) -> bool:
        """True if one more may come, if need be in the place of one that has said nothing."""
        return len(self._all) < MAX_CALLERS or self.drop_silent(f"there are {len(self._all)} others")

    def drop_silent(self, why: str) -> bool:
        """Cut off whoever has said nothing for the longest time; False if there is nobody like that."""
        first = next(iter(self._silent), None)
        if first is None:
            return False
        self._cut_off(f"a connection that said nothing was closed: {why}")
        first.close()
        return True

    def join(self, caller: Caller) -> None:
        """There is one more."""
        self._all.add(caller)
        self._silent[caller] = None

    def has_called(self, caller: Caller) -> None:
        """It has made a call."""
        self._silent.pop(caller, None)

    def hold(self, caller: Caller, held_bytes: int) -> None:
        """So much is held for it now. It may be cut off in here, and so may others."""
        self._count(caller, held_bytes)
        if held_bytes > FREE_BYTES:
            self._large.setdefault(caller, None)
        else:
            self._large.pop(caller, None)
        while self.held > MAX_HELD_BYTES and self._large:
            first = next(iter(self._large))
            self._cut_off(f"a connection was closed that had {first.held} bytes held, of {self.held} in all")
            first.close()

    def _count(self, caller: Caller, held_bytes: int) -> None:
        self.held += held_bytes - caller.held
        caller.held = held_bytes
        if self.held > MUCH_BYTES:
            self._had_much = True
        elif self._had_much and self.held < MUCH_BYTES // 2:
            self._had_much = False
            self._relieved()

    def count_calls(self, number: int) -> None:
        """So many calls of all of them are open."""
        if number > MANY_CALLS:
            self._had_many = True
        elif self._had_many and number < MANY_CALLS // 2:
            self._had_many = False
            self._relieved()

    def leave(self, caller: Caller) -> None:
        """It has been closed; a second call does nothing."""
        self._count(caller, 0)
        self._all.discard(caller)
        self._silent.pop(caller, None)
        self._large.pop(caller, None)
