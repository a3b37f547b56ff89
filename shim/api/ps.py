"""A service of our own beside the Task service: all that a shim has, in one answer, for `manor ps`.

Asked by containerd's calls it would take a State for each process, and those that are being made have none yet.
"""

# ruff: noqa: D101 - the fields are explained once, here: `step` is the last that is done of what is under way, "" where
# nothing is; `start_time` is in clock ticks after boot; `age_ms` counts from when somebody asked for the process.
from __future__ import annotations

from shim.api.message import Message, messages, string, uint32, uint64
from shim.api.types import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVICE = "manor.ps.v1.Ps"


class ProcessShown(Message):
    NAME = "manor.ps.v1.ProcessShown"
    container: str = string(1)
    exec_id: str = string(2)
    pid: int = uint32(3)
    start_time: int = uint64(4)
    status: str = string(5)
    step: str = string(6)
    age_ms: int = uint64(7)
    exit_status: int = uint32(8)


class ListResponse(Message):
    NAME = "manor.ps.v1.ListResponse"
    pid: int = uint32(1)
    version: str = string(2)
    sandbox: str = string(3)
    processes: Sequence[ProcessShown] = messages(4, ProcessShown)


METHODS: Mapping[str, tuple[type[Message], type[Message]]] = {"List": (Empty, ListResponse)}
