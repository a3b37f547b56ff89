"""From a command line of containerd's to a socket that it can connect to.

What was asked (Go's flag syntax, environment, and from containerd 2.3 on a protobuf on stdin), which
shim it is for (containers of one pod share one), where that shim listens, and how the answer is written.
All of it happens once, before there is a loop; serving is `daemon`'s.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os

from runtime.errors import InvalidArgument, ManorError
from runtime.linux.fds import OwnedFd
from runtime.record import Record
from runtime.spec.json import JsonError, parse
from shim.api import task, types
from shim.api.bootstrap import LOG_LEVEL_DEBUG, BootstrapParams, BootstrapResult
from shim.api.codec import CodecError, decode, encode
from shim.ttrpc.connection import ClientConnection

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
# In a pod's state directory, beside those of its containers; no container id has such a character.
SOCKET_FILE = "@socket"
# Annotations that name the pod of a container, first match first; containerd's own shim has the same.
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")

_MAX_CONFIG = 16 << 20
_MAX_SOCKET_PATH = 107  # sun_path (unix(7))
_BACKLOG = 128
# A shim answers at once; one that is stopped, by a debugger say, is not dead.
ANSWER_TIMEOUT_S = 2.0
_TEXT_FLAGS = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket")
_SWITCHES = ("debug", "v", "version", "info")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


class BootstrapError(ManorError):
    """No socket could be had; says where and why."""


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
        options=extensions[0] if extensions else None,
        speaks_protobuf=True,
    )


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


def listen(path: str) -> OwnedFd | None:
    """A listening socket at `path` (0600, in a directory 0700), or None if a shim listens there already.

    One that nobody listens on is replaced. BootstrapError. Two starts at once take turns by a lock on
    the directory, so that neither takes the other's socket for a dead one.
    """
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise BootstrapError(f"socket path {path} is longer than {_MAX_SOCKET_PATH} bytes")
    directory = os.path.dirname(path)
    make_directory(directory)
    try:
        with OwnedFd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            if is_served(path):
                return None
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            return _bind(path)
    except OSError as error:
        raise BootstrapError(f"listen on {path}: {error.strerror}") from error


def is_served(path: str) -> bool:
    """True if a shim at `path` answers, or is too busy to. OSError where that can't be found out.

    That it can be connected to is not enough: the kernel closes what a killed process had open one by one,
    the listening socket after the connections whose end made containerd run us.
    """
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    probe.setblocking(False)
    try:
        probe.connect(path)
    except BlockingIOError:  # others wait in front of us
        return True
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK, errno.EPROTOTYPE):
            return False
        raise
    else:
        return _answers(probe)
    finally:
        probe.close()


def _answers(probe: _socket.socket) -> bool:
    probe.settimeout(ANSWER_TIMEOUT_S)
    _stream_id, call = ClientConnection().call(task.SERVICE_V2, "Connect", encode(task.ConnectRequest()))
    try:
        probe.sendall(call)
        return bool(probe.recv(1))
    except TimeoutError:
        return True  # stopped, perhaps, but there
    except (BrokenPipeError, ConnectionResetError):
        return False


def _bind(path: str) -> OwnedFd:
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    return OwnedFd(listener.detach())


def make_directory(path: str) -> None:
    """Make what is missing of `path`, 0700 each. BootstrapError where others could put something in our place."""
    if not os.path.isdir(path):
        made = ""
        for part in path.strip("/").split("/"):
            made += f"/{part}"
            try:
                os.mkdir(made, 0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise BootstrapError(f"create directory {made}: {error.strerror}") from error
    status = os.stat(path)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise BootstrapError(f"directory {path}: others may write to it")


def write_address(bundle: int, address: str) -> None:
    """Leave the address in the bundle, where containerd 1.6 and 1.7 look for it after a restart. OSError."""
    _write_whole(bundle, ADDRESS_FILE, address)


def record_socket(pod_directory: str, path: str) -> None:
    """Note where the pod's shim listens, for `delete`, which is not told. BootstrapError, OSError."""
    make_directory(pod_directory)
    with OwnedFd(os.open(pod_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        _write_whole(directory.fileno(), SOCKET_FILE, path)


def _write_whole(directory: int, name: str, text: str) -> None:
    temporary = f"@{name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with OwnedFd(os.open(temporary, flags, 0o600, dir_fd=directory)) as fd:
        os.write(fd.fileno(), text.encode())
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def recorded_socket(pod_directory: str) -> str:
    """Where the pod's shim listens, or did; "" for a pod that never had one, or whose shim ended in order."""
    try:
        with OwnedFd(os.open(f"{pod_directory}/{SOCKET_FILE}", os.O_RDONLY | os.O_CLOEXEC)) as fd:
            return os.fsdecode(os.read(fd.fileno(), 4096))
    except OSError:
        return ""


def forget_pod(pod_directory: str) -> None:
    """Remove the pod's state directory, if it has no containers any more; else leave it as it is."""
    try:
        if os.listdir(pod_directory) == [SOCKET_FILE]:
            os.unlink(f"{pod_directory}/{SOCKET_FILE}")
            os.rmdir(pod_directory)
    except OSError:
        pass  # it was never made, or a container comes in this moment, of a shim that is not ours


def remove_socket(path: str) -> None:
    """Take the name away, so that nobody finds a shim that ends, or has ended."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def encode_answer(bootstrap: Bootstrap, address: str) -> bytes:
    """What `start` prints. Version 3 tells containerd that a pod's later containers need no start of their own."""
    if bootstrap.speaks_protobuf:
        return encode(BootstrapResult(version=3, address=address, protocol="ttrpc"))
    return address.encode()
