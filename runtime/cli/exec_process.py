"""What an `exec` is to run: from a process.json, or from the container's own process and the options that change it."""

from __future__ import annotations

import os

from runtime.bundle import read_config
from runtime.errors import ConfigError, InvalidArgument
from runtime.linux.fds import OwnedFd
from runtime.record import replace
from runtime.spec.load import load_process, load_spec
from runtime.spec.model import Capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.cli.arguments import Call
    from runtime.spec.model import Process, User

_MAX_PROCESS = 1 << 20
_LARGEST_ID = 0xFFFFFFFE  # the one after it stands for none
# option: the field of Process that it replaces.
_REPLACED = {"cwd": "cwd", "apparmor": "apparmor_profile", "process-label": "selinux_label"}


def wanted_process(call: Call, bundle: str) -> Process:
    """The process that `call` asks for, in the container of `bundle`. ConfigError, InvalidArgument, OSError."""
    options = call.options
    if options["process"]:
        return load_process(_read(options["process"]))
    os.chdir(bundle)  # as with runc, relative paths of sockets are to be taken from there
    process = load_spec(read_config(bundle)).process
    if len(call.arguments) < 2:
        raise InvalidArgument("exec args cannot be empty")
    if options["cwd"] and not options["cwd"].startswith("/"):
        raise InvalidArgument("Cwd must be an absolute path")
    process = replace(
        process,
        args=tuple(call.arguments[1:]),
        env=(*process.env, *options["env"]),
        terminal=options["tty"],
        user=wanted_user(process.user, options["user"], options["additional-gids"]),
        **{field: options[option] for option, field in _REPLACED.items() if options[option]},
    )
    if options["cap"]:
        process = replace(process, capabilities=widened(process.capabilities, tuple(options["cap"])))
    if "no-new-privs" in call.given:
        process = replace(process, no_new_privileges=options["no-new-privs"])
    return process


def wanted_user(user: User, asked: str, groups: Sequence[int]) -> User:
    """`user` with the "UID" or "UID:GID" of `asked`, and `groups` added. InvalidArgument for what are no ids."""
    if asked:
        uid, colon, gid = asked.partition(":")
        if colon:
            user = replace(user, gid=_id("gid", gid))
        user = replace(user, uid=_id("uid", uid))
    for group in groups:
        if not 0 <= group <= _LARGEST_ID:
            raise InvalidArgument(f"additional-gids must be a positive number {group}")
    return replace(user, additional_gids=(*user.additional_gids, *groups))


def _id(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _LARGEST_ID):
        raise InvalidArgument(f"bad {name}: {text[:100]!r} is not a number from 0 to {_LARGEST_ID}")
    return int(text)


def widened(capabilities: Capabilities | None, added: tuple[str, ...]) -> Capabilities:
    """With `added` in the sets that runc adds to: ambient ones need inheritable ones, which it does not add."""
    own = capabilities or Capabilities()
    return replace(
        own,
        bounding=own.bounding + added,
        effective=own.effective + added,
        permitted=own.permitted + added,
        ambient=own.ambient + added if own.inheritable else own.ambient,
    )


def _read(path: str) -> bytes:
    """All of the file `path`, which may be a pipe. OSError, ConfigError for one of more than 1 MiB."""
    data = b""
    with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        while part := os.read(fd.fileno(), 65536):
            data += part
            if len(data) > _MAX_PROCESS:
                raise ConfigError("", f"{path} has more than {_MAX_PROCESS} bytes")
    return data
