"""state.json: what must be known of a container by a process that did not start it.

Always a whole file: written beside and renamed. Ids are checked here and joined below the root
directory, so that no id can name anything else. A process is named by pid and start time together:
the pid alone may be somebody else's by now.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import IdInUse, InvalidId, InvalidState, NotFound, StageError
from runtime.linux import procstat
from runtime.linux.trees import remove_tree
from runtime.record import Record, as_dict
from runtime.spec.json import JsonError, dump, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

CREATING = "creating"
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"

# What may come after what (runtime.md, "Lifecycle"; paused is runc's).
NEXT: dict[str, tuple[str, ...]] = {
    CREATING: (CREATED, STOPPED),
    CREATED: (RUNNING, PAUSED, STOPPED),
    RUNNING: (PAUSED, STOPPED),
    PAUSED: (CREATED, RUNNING, STOPPED),
    STOPPED: (),
}

_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+.-")
_MAX_ID = 255
_MAX_STATE = 32 << 20  # a config may have 4 MiB, and its annotations are in here, as often as need be
STATE_FILE = "state.json"
# Of state.json. Raised with a change that a reader of the one before would misunderstand; a field more, which it can
# do without, is none. Read are this one and the one before.
FORMAT = 1
_OLDEST_FORMAT = 1
GATE = "start.sock"
_CGROUP_MADE = ".cgroup"
_RDT_MADE = ".rdt"
_ANNOUNCED = ".create"
_MAX_NOTE = 64 << 10
_MOST_DIGITS = 20  # of an inode number
_MOST_PIDS = 1 << 31  # what fits pid_t, though PID_MAX_LIMIT is less


class State(Record):
    """The content of state.json. `start_time` is init's, in clock ticks after boot; `created` RFC 3339 UTC.

    `cgroups_path` is below each hierarchy's mount point, and `unit` systemd's name for it, if it is systemd's.
    A `pid` of 0 says that create has not come far enough to have one. `owner` is the uid of who made it.
    `terms` is for those who exec in it or delete it (`runtime.terms`).
    """

    id: str
    bundle: str
    pid: int
    start_time: int
    created: str
    cgroups_path: str
    cgroup_directories: tuple[tuple[str, str], ...]
    namespaces: int
    rootfs: str
    annotations: dict[str, str]
    oci_version: str
    stdio: tuple[str, ...] = ()
    terms: dict[str, Any] | None = None
    owner: int = 0
    unit: str = ""
    version: int = FORMAT


def transition(current: str, target: str) -> str:
    """`target`, if it may follow `current`. InvalidState otherwise."""
    if target not in NEXT[current]:
        raise InvalidState(f"cannot go from {current} to {target}")
    return target


def check_id(value: str) -> str:
    """`value`, if it is a container id (runc's rule). InvalidId otherwise."""
    if not is_id(value):
        raise InvalidId(value)
    return value


def is_id(value: str) -> bool:
    """Whether `value` is a container id (runc's rule)."""
    return 1 <= len(value) <= _MAX_ID and value not in (".", "..") and _ID_CHARACTERS.issuperset(value)


def make_directory(root: str, container_id: str, traversable: bool) -> str:
    """Make the container's directory below `root` (0700, made on demand) and give its path.

    `traversable` (0711) lets a user namespace's root reach what it must. IdInUse when it exists.
    """
    check_id(container_id)
    _make_root(root)
    path = f"{root}/{container_id}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise IdInUse(f"container {container_id} exists already") from None
    if traversable:
        os.chmod(path, 0o711)  # noqa: S103 -- the mapped root must be able to pass through
    return path


def _make_root(root: str) -> None:
    """Every level with an explicit mode: os.makedirs would give the parents 0755."""
    if os.path.isdir(root):
        return
    path = ""
    for part in root.strip("/").split("/"):
        path += f"/{part}"
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise StageError(
                "main", "create directory", path, os.strerror(error.errno or 0), error.errno or 0
            ) from error


def announce(
    directory: str, bundle: str, cgroups_path: str, more: Mapping[str, object] | None = None
) -> None:
    """Say what a create is about to make: a root mounted in `bundle`, a cgroup. One write(2), whole or not at all.

    `more` is what few containers have: "root_on_host" and "rdt" as in `Terms`, "systemd" where the cgroup is to be a
    unit. The inode number of `bundle` is noted, too: a directory of that name may be somebody else's one day. OSError.
    """
    said = {**(more or {}), "bundle": _inode(bundle)}
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    _write(f"{directory}/{_ANNOUNCED}", flags, dump([bundle, cgroups_path, said]))


def _write(path: str, flags: int, content: bytes) -> None:
    """Make a small file, 0600. OSError, which names it: write(2) says of a full disk no more than that."""
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def announced(root: str, container_id: str) -> State | None:
    """What `announce` has said, as the state of a container that has come no further; None if nothing was said.

    Its `terms` are what was said more.
    """
    try:
        bundle, cgroups_path, *more = parse(
            _read_note(root, container_id, _ANNOUNCED)
        )  # a later version may say more
    except (OSError, JsonError, TypeError, ValueError):
        return None
    if type(bundle) is not str or type(cgroups_path) is not str:
        return None
    said = more[0] if more and type(more[0]) is dict else {}
    return State(container_id, bundle, 0, 0, "", cgroups_path, (), 0, "", {}, "", terms=said)


def is_its_bundle(root: str, container_id: str, bundle: str) -> bool:
    """Whether the directory `bundle` is the one that `announce` has seen, or nobody knows."""
    said = announced(root, container_id)
    noted = (said.terms or {}).get("bundle") if said is not None and said.bundle == bundle else 0
    return not noted or _inode(bundle) == noted


def note_cgroup(directory: str, paths: Iterable[str] = ()) -> None:
    """Say that the cgroup of the container of `directory` was made for it: until then that path is somebody else's.

    `paths` are its directories in all hierarchies, whose inode numbers no later cgroup will have (fs/kernfs). OSError.
    """
    _note(directory, _CGROUP_MADE, " ".join(str(os.stat(path).st_ino) for path in paths) or "0")


def cgroup_inodes(root: str, container_id: str) -> tuple[int, ...]:
    """What `note_cgroup` has noted, in its order: nothing where it knew no directory (an earlier version knows none, or
    the first one's), or said nothing.
    """
    return _inodes(root, container_id, _CGROUP_MADE)


def note_rdt(directory: str, path: str) -> None:
    """The same for the directory of a resctrl group that was made for the container. OSError."""
    _note(directory, _RDT_MADE, str(os.stat(path).st_ino))


def rdt_inode(root: str, container_id: str) -> int:
    """What `note_rdt` has noted, 0 if nothing."""
    return next(iter(_inodes(root, container_id, _RDT_MADE)), 0)


def _note(directory: str, name: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    _write(f"{directory}/{name}", flags, text.encode())


def _inodes(root: str, container_id: str, name: str) -> tuple[int, ...]:
    try:
        numbers = _read_note(root, container_id, name).split()
    except OSError:
        return ()
    found = [int(each) if each.isdigit() and len(each) <= _MOST_DIGITS else 0 for each in numbers]
    return tuple(found) if all(found) else ()


def _read_note(root: str, container_id: str, name: str) -> bytes:
    path = f"{root}/{check_id(container_id)}/{name}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, _MAX_NOTE)
    finally:
        os.close(fd)


def has_cgroup(root: str, container_id: str) -> bool:
    """Whether that was said."""
    return os.path.lexists(f"{root}/{check_id(container_id)}/{_CGROUP_MADE}")


def remove_directory(root: str, container_id: str) -> None:
    """Remove the container's directory, whatever is in it; fine if it is gone. OSError, also for a mount in there."""
    check_id(container_id)
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(fd, container_id)
    finally:
        os.close(fd)


def save(directory: str, state: State) -> None:
    """Write state.json into `directory` so that a reader sees the old or the new one, whole.

    It is not synced: no container outlives a power cut, and the page cache outlives every process.
    """
    content = dump(as_dict(state))
    if len(content) > _MAX_STATE:  # nobody could read it, and the container could not be deleted
        raise InvalidState(f"state of container {state.id} has {len(content)} bytes, more than {_MAX_STATE}")
    temporary = f"{directory}/.{STATE_FILE}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        data = memoryview(content)
        while data:
            data = data[os.write(fd, data) :]
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, f"{directory}/{STATE_FILE}") from error
        raise
    finally:
        os.close(fd)
    os.rename(temporary, f"{directory}/{STATE_FILE}")


def load(root: str, container_id: str) -> State:
    """Read a container's state. NotFound without one; InvalidState when the file is not ours to understand."""
    data = _read(root, container_id)
    try:
        value = parse(data)
        _check_format(container_id, value["version"])
        return _from_json(value)
    except InvalidState:
        raise
    except Exception as error:
        raise InvalidState(f"state of container {container_id} is damaged: {error}") from error


def salvage(root: str, container_id: str) -> State | None:
    """What can be made out of a state that `load` refuses (another version wrote it, say): init, and its cgroups.

    None where not even that can be told. NotFound without a state.
    """
    try:
        value = parse(_read(root, container_id))
        pid, started, path = value["pid"], value["start_time"], value["cgroups_path"]
        directories = tuple([(str(name), str(place)) for name, place in value["cgroup_directories"]])
        unit, bundle = value.get("unit", ""), value.get("bundle", "")
    except NotFound:
        raise
    except Exception:
        return None
    if not _is_count(pid, _MOST_PIDS) or not _is_count(started) or not pid or not started or not directories:
        return None
    if any(type(text) is not str for text in (path, unit, bundle)):
        return None
    return State(container_id, bundle, pid, started, "", path, directories, 0, "", {}, "", unit=unit)


def _read(root: str, container_id: str) -> bytes:
    path = f"{root}/{check_id(container_id)}/{STATE_FILE}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"container {container_id} does not exist") from None
    except OSError as error:
        raise InvalidState(f"read {path}: {os.strerror(error.errno or 0)}") from error
    try:
        return os.read(fd, min(os.fstat(fd).st_size, _MAX_STATE) + 1)
    except OSError as error:  # a directory in its place, say
        raise InvalidState(f"read {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(fd)


def _check_format(container_id: str, version: object) -> None:
    """InvalidState for a version of state.json that is not read here."""
    if type(version) is not int:
        raise ValueError(f"version: {version!r} is not a number")
    if version > FORMAT:
        raise InvalidState(
            f"state of container {container_id}: version {version} is of a newer Manor, this one reads up to {FORMAT}"
        )
    if version < _OLDEST_FORMAT:
        raise InvalidState(
            f"state of container {container_id}: version {version} is of an older Manor, "
            f"this one reads from {_OLDEST_FORMAT} on"
        )


def _from_json(value: Any) -> State:
    """What a later version has added is left out: a field that must not be would have raised FORMAT."""
    value = {name: field for name, field in value.items() if name in State.FIELD_NAMES}
    value["cgroup_directories"] = tuple(
        [(str(name), str(path)) for name, path in value["cgroup_directories"]]
    )
    value["stdio"] = tuple([str(name) for name in value["stdio"]])
    state = State(**value)
    if not _is_count(state.pid, _MOST_PIDS):
        raise ValueError(f"{state.pid!r} is not a pid")
    for number in (state.start_time, state.namespaces):
        if not _is_count(number):
            raise ValueError(f"{number!r} is not a number")
    texts = (state.id, state.bundle, state.cgroups_path, state.rootfs, state.created, state.unit)
    for text in (*texts, state.oci_version):
        if type(text) is not str:
            raise ValueError(f"{text!r} is not a text")
    if type(state.annotations) is not dict or not isinstance(state.terms, (dict, type(None))):
        raise ValueError("annotations or terms are no objects")
    return state


def _is_count(value: object, below: int = 1 << 63) -> bool:
    return type(value) is int and 0 <= value < below


def shown(
    oci_version: str,
    container_id: str,
    status: str,
    pid: int,
    bundle: str,
    annotations: dict[str, str] | None,
) -> dict[str, Any]:
    """A container's state as runtime.md, "State" has it, for hooks and for whoever asks."""
    told: dict[str, Any] = {"ociVersion": oci_version, "id": container_id, "status": status}
    if status != STOPPED:
        told["pid"] = pid
    told["bundle"] = bundle
    if annotations:
        told["annotations"] = annotations
    return told


def is_alive(pid: int, start_time: int) -> bool:
    """True while the very process runs that had `pid` at `start_time`; a zombie has ended."""
    try:
        return procstat.start_time(pid) == start_time and not procstat.is_zombie(pid)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return False
        raise
