"""state and list: what is known of containers, read from their state files and /proc alone.

These two are asked for often, by scripts in loops, so they load next to nothing: neither the operations nor the
cgroups. What a status follows from is the same as in `runtime.operations.load`.
"""

from __future__ import annotations

import os

from runtime import state
from runtime.cli.arguments import Option, Verb
from runtime.cli.output import SPEC_VERSION, compact, indented, say
from runtime.errors import InvalidArgument, ManorError
from runtime.status import status_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runtime.cli.arguments import Call

_HEADER = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")
_LEAST_WIDTH, _PADDING = 12, 3  # of runc's table


def show_state(call: Call) -> int:
    """Print one container's state."""
    known = state.load(call.globals.root, call.arguments[0])
    say(indented(_described(call.globals.root, known, ""), "  ") + "\n")
    return 0


def show_list(call: Call) -> int:
    """Print all containers below the root; what cannot be read is said and left out."""
    as_json, quiet = call.options["format"] == "json", call.options["quiet"]
    if call.options["format"] not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    found = _all(call)
    if quiet:
        say("".join(f"{each['id']}\n" for each in found))
    elif as_json:
        say(compact(found) + "\n")
    else:
        names = ("id", "pid", "status", "bundle", "created", "owner")
        say(_table([_HEADER, *(tuple(str(each[name]) for name in names) for each in found)]))
    return 0


def _all(call: Call) -> list[dict[str, Any]]:
    root = call.globals.root
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        if call.globals.root_given:
            raise
        return []  # the default one is made with the first container
    users: dict[int, str] = {}
    found = []
    for name in names:
        try:
            state.check_id(name)
            owner = os.stat(f"{root}/{name}", follow_symlinks=False)
            if (owner.st_mode & 0o170000) != 0o040000:
                continue
            known = state.load(root, name)
            found.append(_described(root, known, _user(owner.st_uid, users)))
        except (ManorError, OSError) as error:
            if _is_there(root, name):
                os.write(2, f"load container {name}: {error}\n".encode("utf-8", "surrogateescape"))
    return found


def _is_there(root: str, name: str) -> bool:
    """False for what is no container, or was deleted while we looked."""
    try:
        state.check_id(name)
    except ManorError:
        return False
    return os.path.isdir(f"{root}/{name}")


def _described(root: str, known: state.State, owner: str) -> dict[str, Any]:
    """The container in runc's fields and order."""
    status = status_of(root, known)
    told: dict[str, Any] = {
        "ociVersion": SPEC_VERSION,  # of what we say here (runtime.md, "State")
        "id": known.id,
        "pid": 0 if status == state.STOPPED else known.pid,
        "status": status,
        "bundle": known.bundle,
        "rootfs": known.rootfs,
        "created": known.created,
    }
    if known.annotations:
        told["annotations"] = dict(sorted(known.annotations.items()))
    told["owner"] = owner
    return told


def _user(uid: int, users: dict[int, str]) -> str:
    """The name of `uid` by /etc/passwd, "#UID" without one."""
    if not users:
        try:
            with open("/etc/passwd", encoding="utf-8", errors="replace") as file:
                for line in file:
                    fields = line.split(":")
                    if len(fields) > 3 and fields[2].isdecimal():
                        users.setdefault(int(fields[2]), fields[0])
        except OSError:
            pass  # a machine without users by name
    return users.setdefault(uid, f"#{uid}")


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(_LEAST_WIDTH, *(len(row[column]) + _PADDING for row in rows)) for column in range(5)]
    lines = ("".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows)
    return "".join(f"{line}{row[5]}\n" for line, row in zip(lines, rows, strict=True))


VERBS = {
    "state": Verb(
        "state",
        "<container-id>",
        "output the state of a container",
        (),
        show_state,
        least=1,
        most=1,
        about="The state command outputs current state information for the instance of a container.",
    ),
    "list": Verb(
        "list",
        "",
        "lists containers started by manor-oci with the given root",
        (
            Option(("--format", "-f"), help="select one of: table or json", default="table"),
            Option(("--quiet", "-q"), "flag", help="display only container IDs"),
        ),
        show_list,
        about="The given root is that of the global option --root.",
    ),
}
