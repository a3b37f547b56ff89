"""A container's directory in each hierarchy: made so that it can be used, and removed with all below it.

Made means: v1 cpusets have CPUs and memory nodes, v2 controllers are handed down from the root. Limits
are not set here.
"""

from __future__ import annotations

import errno
import os

from runtime.cgroups.files import read_file, write_file
from runtime.errors import CgroupError
from runtime.linux.fds import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from runtime.cgroups.layout import Hierarchy

_MODE = 0o755
_ATTEMPTS = 4
_MOST_REMOVALS = 2000  # about 0.2 s
_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")
_GONE = (errno.ENOENT, errno.ENODEV)


def make_directory(hierarchy: Hierarchy, path: str, made: list[str]) -> bool:
    """Make `path`, parents included, below the mount point; what is new is appended to `made`, outermost first.

    False if the directory itself was there before. CgroupError when it can't be made.
    """
    leaf = f"{hierarchy.mountpoint}/{path}"
    for _attempt in range(_ATTEMPTS):  # another container's end may take away the parent that we share
        try:
            os.mkdir(leaf, _MODE)
        except FileExistsError:
            return False
        except FileNotFoundError:
            _make_parents(hierarchy.mountpoint, path, made)
        except OSError as error:
            raise CgroupError(f"make cgroup {leaf}: {error.strerror}") from error
        else:
            made.append(leaf)
            return True
    raise CgroupError(f"make cgroup {leaf}: its parent keeps vanishing")


def _make_parents(mountpoint: str, path: str, made: list[str]) -> None:
    directory = mountpoint
    for part in path.split("/")[:-1]:
        directory = f"{directory}/{part}"
        try:
            os.mkdir(directory, _MODE)
        except FileExistsError:
            continue
        except FileNotFoundError:
            return
        except OSError as error:
            raise CgroupError(f"make cgroup {directory}: {error.strerror}") from error
        made.append(directory)


def remove_made(made: Iterable[str]) -> None:
    """Undo `make_directory`: remove what it made, innermost first. What somebody else uses by now stays."""
    for directory in reversed(tuple(made)):
        try:
            os.rmdir(directory)
        except OSError:
            continue  # in use or gone: either way it is not ours alone


def inherit_cpuset(mountpoint: str, path: str, asked: Iterable[str] = ()) -> None:
    """Give the v1 cpuset `path` its parent's CPUs and memory nodes where it has none and none are `asked`.

    Without both no task can join (ENOSPC). Parents that are empty themselves are filled first.
    """
    for file in _CPUSET_FILES:
        if file in asked:
            _inherited(mountpoint, path.rpartition("/")[0], file)
        else:
            _inherited(mountpoint, path, file)


def _inherited(mountpoint: str, path: str, file: str) -> str:
    name = f"{mountpoint}/{path}/{file}" if path else f"{mountpoint}/{file}"
    value = read_file(name).strip()
    if value or not path:
        return value
    value = _inherited(mountpoint, path.rpartition("/")[0], file)
    try:
        write_file(name, value)
    except OSError as error:
        raise CgroupError(f"inherit {file}: write {value!r} to {name}: {error.strerror}") from error
    return value


def hand_down(hierarchy: Hierarchy, path: str, wanted: Iterable[str], needed: dict[str, str]) -> None:
    """Enable `wanted` v2 controllers for `path`, from the root of the mount down to its parent.

    CgroupError if one of `needed` (controller: the config's field that asks for it) does not arrive.
    """
    leaf = f"{hierarchy.mountpoint}/{path}"
    present = read_file(f"{leaf}/cgroup.controllers").split()
    missing = [each for each in wanted if each not in present]
    if not missing:
        return
    refusals: dict[str, str] = {}
    directory = hierarchy.mountpoint
    for part in path.split("/"):
        _enable(directory, missing, refusals)
        directory = f"{directory}/{part}"
    present = read_file(f"{leaf}/cgroup.controllers").split()
    for controller, field in needed.items():
        if controller not in present:
            cause = refusals.get(controller, "a parent does not offer it")
            raise CgroupError(f"{field}: enable cgroup controller {controller} for {leaf}: {cause}")


def _enable(directory: str, controllers: list[str], refusals: dict[str, str]) -> None:
    file = f"{directory}/cgroup.subtree_control"
    try:
        write_file(file, " ".join(f"+{each}" for each in controllers))
    except OSError:
        # One by one: ENOENT for one that isn't offered here, EBUSY while the directory has processes of
        # its own (no internal processes, cgroup-v2.rst), must not keep the others back.
        for each in controllers:
            try:
                write_file(file, f"+{each}")
            except OSError as error:
                refusals.setdefault(each, f"write '+{each}' to {file}: {error.strerror}")


def try_remove(directory: str, most: int = _MOST_REMOVALS) -> bool:
    """Remove `directory` and at most about `most` below it, once, without waiting; True when it is gone.

    False while a process is in it, or when a container left more than can be removed in one go. OSError
    for anything else.
    """
    removed = _rmdir(directory)
    if removed or not _has_children(directory):
        return removed
    steps = 0
    for fd, name in walk(directory):
        if name:
            _rmdir(name, fd)
            steps += 1
        if steps > most:
            return False
    return _rmdir(directory)


def _rmdir(name: str, parent: int | None = None) -> bool:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in _GONE:
            return True
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True


def _has_children(directory: str | int) -> bool:
    try:
        return os.stat(directory).st_nlink > 2  # kernfs counts a link for each child
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise


def walk(directory: str) -> Generator[tuple[int, str], None, None]:
    """Every directory from `directory` down: (its fd, "") on the way down; (its parent's fd, its name) on the
    way up, for all but the first. Nothing where it is gone.

    With one descriptor and no paths: a container may nest its cgroups deeper than PATH_MAX.
    """
    try:
        here = _open_directory(directory)
    except FileNotFoundError:
        return
    try:
        yield here.fileno(), ""
        names: list[str] = []
        pending = [_child_names(here.fileno())]
        while True:
            if pending[-1]:
                name = pending[-1].pop()
                try:
                    child = _open_directory(name, here.fileno())
                except FileNotFoundError:
                    continue
                here.close()
                here = child
                names.append(name)
                yield here.fileno(), ""
                pending.append(_child_names(here.fileno()))
            elif names:
                pending.pop()
                parent = _open_directory("..", here.fileno())
                here.close()
                here = parent
                yield here.fileno(), names.pop()
            else:
                return
    except FileNotFoundError:
        return  # removed under our feet, with all that was left to see
    finally:
        here.close()


def _open_directory(name: str, parent: int | None = None) -> OwnedFd:
    return OwnedFd(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=parent))


def _child_names(directory: int) -> list[str]:
    if not _has_children(directory):
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def processes(directory: str, most: int = 0) -> list[int]:
    """The pids in `directory` and all below it; none where it is gone. OSError if it can't be read.

    With `most`, enough is enough: a cgroup more is not read when so many have been found.
    """
    found: list[int] = []
    for fd, name in walk(directory):
        if not name:
            found += _own_processes(fd)
            if most and len(found) >= most:
                break
    return found


def all_processes(directories: Iterable[str], most: int = 0) -> set[int]:
    """The pids in any of `directories` and below; OSError. `most` as for `processes`."""
    found: set[int] = set()
    for directory in directories:
        found.update(processes(directory, most))
        if most and len(found) >= most:
            break
    return found


def _own_processes(directory: int) -> list[int]:
    try:
        return [int(pid) for pid in read_file("cgroup.procs", directory).split()]
    except OSError as error:
        if error.errno in _GONE:
            return []
        if error.errno != errno.EOPNOTSUPP:
            raise
    # A threaded v2 cgroup lists threads only; a signal to one reaches its process.
    return [int(tid) for tid in read_file("cgroup.threads", directory).split()]
