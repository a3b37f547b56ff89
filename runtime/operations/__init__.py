"""The verbs: create, start, exec, kill, pause, resume, update, delete.

Each takes typed requests, decides and refuses first, then acts with every acquisition undone on failure.
What must wait is a generator (`runtime.waiting`); the rest are plain functions that never block.
"""

from __future__ import annotations

from runtime.operations.apart import ApartRequest, create_apart
from runtime.operations.create import create
from runtime.operations.delete import delete
from runtime.operations.exec import exec_
from runtime.operations.kill import kill
from runtime.operations.start import start
from runtime.operations.update import pause, resume, update

__all__ = [
    "ApartRequest",
    "create",
    "create_apart",
    "delete",
    "exec_",
    "kill",
    "pause",
    "resume",
    "start",
    "update",
]
