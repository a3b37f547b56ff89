"""load: a container as a process knows it that did not make it, from its state.json and from what the kernel says.

The status is never stored: it follows from whether init lives, whether somebody still waits at its start gate, and
whether its cgroup is frozen.
"""

from __future__ import annotations

import errno
import fcntl
import os

from runtime import state, terms
from runtime.cgroups.cgroup import open_cgroup, reopen
from runtime.cgroups.driver import SYSTEMD, driver_of
from runtime.container import Container
from runtime.errors import InvalidState, ManorError, NotFound
from runtime.linux.fds import OwnedFd
from runtime.record import replace
from runtime.stages.channel import Channel
from runtime.stages.stage0_parent import Launched
from runtime.status import status_of
from runtime.waiting import Sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cgroups.cgroup import Cgroup
    from runtime.container import Host
    from runtime.waiting import Operation

LOCK_TIMEOUT_S = 10.0
_LOCK_RETRY_S = 0.005


def load(host: Host, container_id: str) -> Container:
    """The container of that id, with its status of now; the caller closes it with `leave`.

    NotFound without one; InvalidState for a state that is damaged, InvalidId.
    """
    known = state.load(host.root, container_id)
    status = status_of(host.root, known)
    pidfd = open_init(known) if status != state.STOPPED else None
    if pidfd is None:
        status, pidfd = state.STOPPED, OwnedFd(-1)
    try:
        launched = Launched(known.pid, pidfd, Channel(OwnedFd(-1), "2:INIT"))
        cgroup = cgroup_of(host, known)
        container = Container(host, container_id, known.bundle, launched, cgroup, _terms(known))
    except BaseException:
        pidfd.close()
        raise
    container.start_gate = None
    container.start_time, container.created = known.start_time, known.created
    container.status = status
    return container


def cgroup_of(host: Host, known: state.State) -> Cgroup:
    """The cgroup that a state names; ManorError where the hierarchies are not what they were."""
    said = {
        "path": known.cgroups_path,
        "unit": known.unit,
        "paths": dict(known.cgroup_directories),
    }
    if known.pid:
        return reopen(host.layout, said, host.systemd)
    # It was to be made: what is known of its cgroup is what the config asked for.
    if (known.terms or {}).get("systemd"):
        host = replace(host, systemd_cgroup=True)  # by an option, which nobody has told us
    cgroup = cgroup_asked_for(host, known.cgroups_path, known.id)
    if not state.has_cgroup(host.root, known.id) and cgroup.holders(1):
        cgroup = open_cgroup(host.layout, known.cgroups_path if not cgroup.unit else "", known.id)
        cgroup.keep(())  # it had not come to that: whoever is in there is not ours to kill
    return cgroup


def cgroup_asked_for(host: Host, cgroups_path: str, container_id: str) -> Cgroup:
    """The cgroup that a create would make for the path in a config. Touches nothing; ConfigError, Unsupported."""
    if host.systemd is not None and driver_of(cgroups_path, host.systemd_cgroup) == SYSTEMD:
        return host.systemd().expected(host.layout, cgroups_path, container_id)
    return open_cgroup(host.layout, cgroups_path, container_id)


def _terms(known: state.State) -> Any:
    try:
        return terms.from_json(known.terms or {})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidState(
            f"state of container {known.id} is not to be understood: terms: {error}"
        ) from error


def open_init(known: state.State) -> OwnedFd | None:
    """A pidfd of init, None if it is gone. Its start time is looked at behind the open: so it is that very process."""
    try:
        pidfd = OwnedFd(os.pidfd_open(known.pid))
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # the pid is a thread's by now
            return None
        raise
    if not state.is_alive(known.pid, known.start_time):
        pidfd.close()
        return None
    return pidfd


def container_ids(host: Host) -> list[str]:
    """The ids of all containers below the root, sorted; those of others, and half-made ones, included."""
    try:
        names = os.listdir(host.root)
    except FileNotFoundError:
        return []
    found = []
    for name in sorted(names):
        try:
            state.check_id(name)
        except ManorError:
            continue
        if os.path.isdir(f"{host.root}/{name}"):
            found.append(name)
    return found


def oci_state(container: Container) -> dict[str, Any]:
    """The container's state as runtime.md, "State" has it."""
    said = container.terms
    return state.shown(
        said.oci_version, container.id, container.status, container.pid, container.bundle, said.annotations
    )


# ---- locks -------------------------------------------------------------------------------------


def lock(host: Host, container_id: str) -> Operation[OwnedFd]:
    """Have the container to oneself until the descriptor is closed: create, start, delete, pause, update.

    The lock is on its directory, and gone with whoever holds it. NotFound; InvalidState after LOCK_TIMEOUT_S.
    """
    state.check_id(container_id)
    path = f"{host.root}/{container_id}"
    left_s = LOCK_TIMEOUT_S
    while True:
        try:
            fd = OwnedFd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise NotFound(f"container {container_id} does not exist") from None
            raise
        if _try_lock(fd) and _is_still(path, fd):
            return fd
        fd.close()
        if left_s <= 0:
            raise InvalidState(f"container {container_id} is in use: another command has it for too long")
        yield Sleep(_LOCK_RETRY_S)
        left_s -= _LOCK_RETRY_S


def _try_lock(fd: OwnedFd) -> bool:
    try:
        fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: str, fd: OwnedFd) -> bool:
    """Whether `path` is the directory that was locked: it may have been deleted and made again meanwhile."""
    try:
        now, ours = os.stat(path), os.fstat(fd.fileno())
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)
