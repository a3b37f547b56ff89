"""The verbs: create, load, start, exec, kill, pause, resume, update, delete.

Each takes typed requests, decides and refuses first, then acts with every acquisition undone on failure.
What must wait is a generator (`runtime.waiting`); the rest are plain functions that never block.
"""

from __future__ import annotations

from runtime.operations.apart import ApartRequest, create_apart
from runtime.operations.create import create
from runtime.operations.delete import delete, delete_by_force
from runtime.operations.exec import exec_
from runtime.operations.kill import is_for_everyone, kill
from runtime.operations.load import container_ids, load, lock, oci_state
from runtime.operations.start import start
from runtime.operations.update import pause, resume, update

__all__ = [
    "ApartRequest",
    "container_ids",
    "create",
    "create_apart",
    "delete",
    "delete_by_force",
    "exec_",
    "is_for_everyone",
    "kill",
    "load",
    "lock",
    "oci_state",
    "pause",
    "resume",
    "start",
    "update",
]
