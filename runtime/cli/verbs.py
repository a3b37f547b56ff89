"""The table of verbs: in which module each is, and one line on it for the list.

Only the module of the verb that was typed is imported: this is the one place of the command line that imports
late, and it does so before anything is forked.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cli.arguments import Verb

# A module here has a dict VERBS, from name to arguments.Verb.
TABLE: dict[str, tuple[str, str]] = {
    "create": ("create", "create a container"),
    "delete": ("lifecycle", "delete any resources held by the container often used with detached container"),
    "events": ("events", "display container events such as OOM notifications and resource usage statistics"),
    "exec": ("exec", "execute new process inside the container"),
    "explain": ("explain", "print what create would do with a bundle, in order, without doing it"),
    "features": ("features", "show the enabled features"),
    "kill": (
        "lifecycle",
        "kill sends the specified signal (default: SIGTERM) to the container's init process",
    ),
    "list": ("inspect", "lists containers started by manor-oci with the given root"),
    "pause": ("lifecycle", "pause suspends all processes inside the container"),
    "ps": ("processes", "ps displays the processes running inside a container"),
    "resume": ("lifecycle", "resumes all processes that have been previously paused"),
    "run": ("run", "create and run a container"),
    "spec": ("spec", "create a new specification file"),
    "start": ("start", "executes the user defined process in a created container"),
    "state": ("inspect", "output the state of a container"),
    "update": ("update", "update container resource constraints"),
}


def find(name: str) -> Verb | None:
    """The verb called `name`, its module imported; None if there is none."""
    entry = TABLE.get(name)
    if entry is None:
        return None
    verb: Verb = late(f"runtime.cli.{entry[0]}").VERBS[name]
    return verb


def late(module: str) -> Any:
    """Import `module` now, because only some uses of the command need it."""
    __import__(module)
    return sys.modules[module]
