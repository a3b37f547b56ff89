"""A service of our own beside the Task service: what containerd has no call for, because its logs pass through it.

`Reopen` names a process as the Task service's State does. It answers when nothing more is written to what the log's
path named before, so that a file that was moved away can be compressed.
"""

from __future__ import annotations

from shim.api.task import StateRequest
from shim.api.types import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.api.message import Message

SERVICE = "manor.logs.v1.Logs"

METHODS: Mapping[str, tuple[type[Message], type[Message]]] = {"Reopen": (StateRequest, Empty)}
