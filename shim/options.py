"""A runtime handler's options: from whichever form they come in to one meaning, and what is not done by them.

They come twice: with `start`, and with each Create, where what a request says itself goes before what the pod's
start was given. containerd sends one of two types, by the handler's `runtime_type`:

* `containerd.runc.v1.Options` for io.containerd.runc.v2, and to any runtime for the owner of a container's streams;
* `runtimeoptions.v1.Options` for all others: the handler's table as TOML text (`config_body`), or where it names a
  `ConfigPath` that file, which a shim reads at its start. The names are runc's: SystemdCgroup, IoUid …

One more is ours and comes as text only: ExecCgroup says where execs go, into a cgroup each ("leaf", the default) or
into the container's own ("container").

Done by them: NoPivotRoot, NoNewKeyring, ShimCgroup, IoUid, IoGid, Root, SystemdCgroup, ExecCgroup. BinaryName is
logged: no other program runs the containers. TaskApiAddress and TaskApiVersion are containerd's notes to itself. The
two of CRIU are refused, and so is any name or type that is not known: nobody would notice what a misspelt option did
not do.
"""

from __future__ import annotations

import os
import stat

from runtime.errors import InvalidArgument, Unsupported, describe
from runtime.linux.fds import OwnedFd
from runtime.record import Record
from shim.api.codec import CodecError
from shim.api.options import Options, RuntimeOptions
from shim.api.types import unpack
from shim.toml import MOST_BYTES, TomlError, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from shim.api.types import Any

    M = TypeVar("M", Options, RuntimeOptions)

KNOWN = (Options.NAME, RuntimeOptions.NAME)
# Where the generic type says in its own fields what the text is; both are keys of the same table.
_OF_THE_TEXT = ("typeurl", "configpath", "configbody")
_FIELDS = {field.name.replace("_", ""): field for field in Options.FIELDS}
_HIGHEST_ID = (1 << 32) - 2

LEAF, CONTAINER = "leaf", "container"
_EXEC_CGROUP = "ExecCgroup"


class Handler(Record):
    """What a pod's start was given, or a Create. `config_path` is the file that it was read from, "" for none.

    `options` are runc's. `exec_cgroup`, LEAF or CONTAINER, is ours; "" where it is not said.
    """

    options: Options = Options()
    config_path: str = ""
    exec_cgroup: str = ""


def type_name(packed: Any) -> str:
    """The name of a message's type, without the host part that its URL may have."""
    return packed.type_url.rpartition("/")[2]


def read_handler(packed: Any | None) -> Handler:
    """The options of a start, the file that they name included. InvalidArgument, Unsupported."""
    if packed is None or not packed.type_url:
        return Handler()
    generic = _generic(packed)
    path = "" if generic is None else generic.config_path
    options, exec_cgroup = _options_in(_read_file(path), path) if path else _decode(packed, generic)
    return Handler(_checked(options), path, exec_cgroup)


def options_of(packed: Any | None, handler: Handler) -> Handler:
    """The options of a Create in a pod that was started with `handler`. InvalidArgument, Unsupported.

    No file is read: containerd names the one that it named at the start.
    """
    if packed is None or not packed.type_url:
        return handler
    generic = _generic(packed)
    if generic is None or not generic.config_path:
        options, exec_cgroup = _decode(packed, generic)
        over = _over(handler.options, _checked(options))
        return Handler(over, handler.config_path, exec_cgroup or handler.exec_cgroup)
    if generic.config_path != handler.config_path:
        raise InvalidArgument(
            f"runtime options: config_path {generic.config_path!r} is not {handler.config_path!r}, with which "
            "the pod's shim was started"
        )
    return handler


def unheeded(options: Options) -> tuple[str, ...]:
    """What is said in `options` and makes no difference, for the log."""
    if not options.binary_name:
        return ()
    return (f"option BinaryName {options.binary_name!r} is ignored: containers are run by this program",)


# ---- forms ---------------------------------------------------------------------------------------


def _generic(packed: Any) -> RuntimeOptions | None:
    """The generic options in `packed`, None for runc's."""
    name = type_name(packed)
    if name not in KNOWN:
        raise InvalidArgument(
            f"runtime options of type {packed.type_url!r} are not known: {' or '.join(KNOWN)} is expected"
        )
    if name == Options.NAME:
        return None
    generic = _unpack(packed, RuntimeOptions)
    if generic.type_url.rpartition("/")[2] not in ("", *KNOWN):
        raise InvalidArgument(f"runtime options: TypeUrl {generic.type_url!r} is not known: leave it away")
    return generic


def _decode(packed: Any, generic: RuntimeOptions | None) -> tuple[Options, str]:
    """runc's options, and ExecCgroup ("" where it is not said)."""
    return (
        (_unpack(packed, Options), "")
        if generic is None
        else _options_in(generic.config_body, "the handler's table")
    )


def _unpack(packed: Any, kind: type[M]) -> M:
    try:
        return unpack(packed, kind)
    except CodecError as error:
        raise InvalidArgument(f"runtime options: {error}") from error


def _options_in(text: bytes, where: str) -> tuple[Options, str]:
    """`_decode` of a text: by their names in containerd's configuration, in any case, as containerd reads them."""
    try:
        table = parse(text)
    except TomlError as error:
        raise InvalidArgument(f"runtime options in {where}: {error}") from error
    values: dict[str, object] = {}
    exec_cgroup = ""
    for key, value in table.items():
        folded = key.lower()
        if folded in _OF_THE_TEXT:
            continue
        if folded == _EXEC_CGROUP.lower():
            exec_cgroup = _exec_cgroup(value, exec_cgroup, where)
            continue
        field = _FIELDS.get(folded)
        if field is None:
            raise InvalidArgument(f"runtime options in {where}: there is no option {key}")
        if type(value) is not type(field.default):
            wanted = {str: "a text", int: "a number", bool: "true or false"}[type(field.default)]
            raise InvalidArgument(f"runtime options in {where}: {key} is {wanted}, not {value!r}")
        if field.name in values:
            raise InvalidArgument(f"runtime options in {where}: {key} is there twice")
        values[field.name] = value
    return Options(**values), exec_cgroup  # type: ignore[arg-type]


def _exec_cgroup(value: object, before: str, where: str) -> str:
    if value not in (LEAF, CONTAINER):
        raise InvalidArgument(
            f"runtime options in {where}: {_EXEC_CGROUP} is '{LEAF}' or '{CONTAINER}', not {value!r}"
        )
    if before:
        raise InvalidArgument(f"runtime options in {where}: {_EXEC_CGROUP} is there twice")
    return str(value)


def _read_file(path: str) -> bytes:
    """The options file of a handler. InvalidArgument where others than us could have written it."""
    if not path.startswith("/"):
        raise InvalidArgument(f"runtime options: config_path {path!r} is not absolute")
    try:
        with OwnedFd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
            status = os.fstat(fd.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument(f"runtime options: {path} is no regular file")
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise InvalidArgument(f"runtime options: others than us may write to {path}")
            data = b""
            while len(data) <= MOST_BYTES and (part := os.read(fd.fileno(), MOST_BYTES)):
                data += part
            return data
    except OSError as error:
        raise InvalidArgument(f"runtime options: read {describe(error)}") from error


# ---- meaning -------------------------------------------------------------------------------------


def _checked(options: Options) -> Options:
    for name, value in (("CriuImagePath", options.criu_image_path), ("CriuWorkPath", options.criu_work_path)):
        if value:
            raise Unsupported(f"runtime options: {name} {value!r}: there are no checkpoints")
    for name, number in (("IoUid", options.io_uid), ("IoGid", options.io_gid)):
        if not 0 <= number <= _HIGHEST_ID:
            raise InvalidArgument(f"runtime options: {name} {number} is no id")
    if options.root and not options.root.startswith("/"):
        raise InvalidArgument(f"runtime options: Root {options.root!r} is not absolute")
    return options


def _over(below: Options, above: Options) -> Options:
    """Each option from `above` if it is set there, else from `below`."""
    return Options(
        **{field.name: getattr(above, field.name) or getattr(below, field.name) for field in Options.FIELDS}
    )
