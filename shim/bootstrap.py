"""From a command line of containerd's to what it means: which shim, for which pod, answered in which form.

What was asked comes as flags in Go's syntax, in the environment, and from containerd 2.3 on as protobuf on
stdin. Containers of one pod share a shim. Where that shim listens is `sockets`' business.
"""

from __future__ import annotations

import os

from runtime.errors import InvalidArgument
from runtime.linux.fds import OwnedFd
from runtime.record import Record
from runtime.spec.json import JsonError, parse
from shim.api import types
from shim.api.bootstrap import LOG_LEVEL_DEBUG, BootstrapParams, BootstrapResult
from shim.api.codec import CodecError, decode, encode
from shim.options import KNOWN, type_name
from shim.sockets import write_whole

try:
    # hashlib would bring OpenSSL along, which every shim would have to map
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:  # Python 3.11
    from _sha256 import sha256  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_DIR = "/run/containerd/s"
ADDRESS_FILE = "address"
CONFIG_FILE = "config.json"
# Annotations that name the pod of a container, first match first; containerd's own shim has the same.
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")

_MAX_CONFIG = 16 << 20
_TEXT_FLAGS = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket")
_SWITCHES = ("debug", "v", "version", "info")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


class Invocation(Record):
    """The command line. `action` is start, delete, or "" where only a switch asks for something."""

    action: str = ""
    namespace: str = ""
    address: str = ""
    publish_binary: str = ""
    id: str = ""
    bundle: str = ""
    debug: bool = False
    show_version: bool = False
    show_info: bool = False


class Bootstrap(Record):
    """What a start needs, wherever this containerd has put it. `options` are the runtime's, if any were given.

    `speaks_protobuf`: the answer is to be a BootstrapResult; else a plain address, which all others take.
    """

    namespace: str
    id: str
    grpc_address: str
    ttrpc_address: str
    debug: bool
    socket_dir: str
    options: types.Any | None
    speaks_protobuf: bool


def parse_arguments(argv: tuple[str, ...]) -> Invocation:
    """The flags before the action, in Go's syntax: -flag value, -flag=value, one dash or two.

    InvalidArgument for a flag that does not exist or has no value.
    """
    texts: dict[str, str] = {}
    switches: dict[str, bool] = {}
    words = list(argv[1:])
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if name in _SWITCHES:
            switches[name] = _truth(name, value) if equals else True
        elif name not in _TEXT_FLAGS:
            raise InvalidArgument(f"flag provided but not defined: -{name}")
        elif equals:
            texts[name] = value
        elif words:
            texts[name] = words.pop(0)
        else:
            raise InvalidArgument(f"flag needs an argument: -{name}")
    return Invocation(
        action=words[0] if words else "",
        namespace=texts.get("namespace", ""),
        address=texts.get("address", ""),
        publish_binary=texts.get("publish-binary", ""),
        id=texts.get("id", ""),
        bundle=texts.get("bundle", ""),
        debug=switches.get("debug", False),
        show_version=switches.get("v", False) or switches.get("version", False),
        show_info=switches.get("info", False),
    )


def _truth(name: str, value: str) -> bool:
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise InvalidArgument(f'invalid boolean value "{value}" for -{name}')


def read_bootstrap(invocation: Invocation, environ: Mapping[str, str], stdin: bytes) -> Bootstrap:
    """Put together what flags, environment and stdin say. InvalidArgument without namespace or id.

    Before 2.3 stdin holds the runtime options as an Any, from then on BootstrapParams. Each also decodes
    as the other, but only in BootstrapParams is the first field the id that the command line has as well.
    """
    if not invocation.namespace or not invocation.id:
        raise InvalidArgument("start: -namespace and -id are needed")
    params = _decode_params(stdin)
    if params is None or params.instance_id != invocation.id:
        return Bootstrap(
            namespace=invocation.namespace,
            id=invocation.id,
            grpc_address=invocation.address,
            ttrpc_address=environ.get("TTRPC_ADDRESS", ""),
            debug=invocation.debug,
            socket_dir=SOCKET_DIR,
            options=_decode_options(stdin),
            speaks_protobuf=False,
        )
    extensions = [extension.value for extension in params.extensions if extension.value is not None]
    return Bootstrap(
        namespace=params.namespace or invocation.namespace,
        id=params.instance_id,
        grpc_address=params.containerd_grpc_address or invocation.address,
        ttrpc_address=params.containerd_ttrpc_address or environ.get("TTRPC_ADDRESS", ""),
        debug=invocation.debug or params.log_level <= LOG_LEVEL_DEBUG,
        socket_dir=params.socket_dir or SOCKET_DIR,
        options=_options_among(extensions),
        speaks_protobuf=True,
    )


def _options_among(extensions: list[types.Any]) -> types.Any | None:
    """The runtime's options, which are known by their type: an extension may be anything."""
    for extension in extensions:
        if type_name(extension) in KNOWN:
            return extension
    return None


def _decode_params(stdin: bytes) -> BootstrapParams | None:
    try:
        return decode(BootstrapParams, stdin) if stdin else None
    except CodecError:
        return None


def _decode_options(stdin: bytes) -> types.Any | None:
    try:
        return decode(types.Any, stdin) if stdin else None
    except CodecError:
        return None


def group_of(bundle: int, container_id: str) -> str:
    """Whose shim a container belongs to: its pod's, by the annotations of the bundle behind the directory
    descriptor `bundle`; its own, where there are none, or no config (a sandbox that has none).

    InvalidArgument for a config that is no JSON: nobody could start it later.
    """
    try:
        with OwnedFd(os.open(CONFIG_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=bundle)) as fd:
            config = parse(_read(fd.fileno()), _MAX_CONFIG)
    except FileNotFoundError:
        return container_id
    except (OSError, JsonError) as error:
        raise InvalidArgument(f"read {CONFIG_FILE}: {error}") from error
    annotations = config.get("annotations") if isinstance(config, dict) else None
    for name in GROUP_ANNOTATIONS:
        group = annotations.get(name) if isinstance(annotations, dict) else None
        if isinstance(group, str) and group:
            return group
    return container_id


def _read(fd: int) -> bytes:
    data = b""
    while len(data) <= _MAX_CONFIG and (part := os.read(fd, 1 << 20)):
        data += part
    return data


def pod_name(grpc_address: str, namespace: str, group: str) -> str:
    """The name of a pod's socket and state directory: containerd's convention (pkg/shim, CreateSocketAddress)."""
    path = os.path.normpath(f"{grpc_address}/{namespace}/{group}")
    return str(sha256(os.fsencode(path)).hexdigest())


def write_address(bundle: int, address: str) -> None:
    """Leave the address in the bundle, where containerd 1.6 and 1.7 look for it after a restart.

    SocketError.
    """
    write_whole(bundle, ADDRESS_FILE, address)


def encode_answer(bootstrap: Bootstrap, address: str) -> bytes:
    """What `start` prints. Version 3 tells containerd that a pod's later containers need no start of their own."""
    if bootstrap.speaks_protobuf:
        return encode(BootstrapResult(version=3, address=address, protocol="ttrpc"))
    return address.encode()
