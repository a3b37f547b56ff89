"""A container that joins a PID namespace by path: its world is made before anything of it can be seen there.

Whoever is born into that namespace is seen by everybody in it: /proc/PID/mountinfo has no ptrace check, and with
CAP_SYS_PTRACE /proc/PID/root and /proc/PID/fd of a process that is not dumpable are open as well. So 1:INTER, which is
not in it, makes the mounts and the pivot and lets go of all that is the host's; only then is init born. A procfs shows
the PID namespace of the process that makes it. That one is made by a process of its own, born by one that had let go
of everything else: the container's root is all that is in its mount namespace. A chroot(2) would not do, since who may
trace it could send it back from there to the host's root.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import StageError
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd, close_all
from runtime.linux.process import setns
from runtime.rootfs.pivot import pivot_copy
from runtime.stages.channel import channel_pair
from runtime.stages.clone import clone_stage
from runtime.stages.messages import Source
from runtime.stages.program import make_terminal
from runtime.stages.stage1_namespaces import enter_pid_namespace, give_up_capabilities
from runtime.stages.stage2_init import (
    enter_late_namespaces,
    enter_remaining_namespaces,
    make_world,
    open_own_doors,
    protect_world,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux.beneath import Root
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import LandlordPlan
    from runtime.stages.program import Terminal
    from runtime.stages.start_gate import Door

MAKER = "1:PROC"


class InsideMaker:
    """Makes mounts in the PID namespace behind `namespace`, without being in it. Call it with what is to be seen."""

    __slots__ = ("_namespace",)

    def __init__(self, namespace: OwnedFd) -> None:
        self._namespace = namespace

    def __call__(self, root: Root, make: Callable[[], OwnedFd]) -> OwnedFd:
        """What `make` gives when called in the namespace. OSError with its failure."""
        try:
            return self._have_made(root, make, alone=True)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            # In a user namespace the kernel asks for a procfs that is in sight already (mount_too_revealing). There
            # nobody inside may trace a process that was executed outside and is not dumpable.
            return self._have_made(root, make, alone=False)

    def _have_made(self, root: Root, make: Callable[[], OwnedFd], alone: bool) -> OwnedFd:
        near, far = channel_pair("1:INTER", MAKER)
        keep = (self._namespace.fileno(), root.fileno())
        try:
            pid, pidfd = clone_stage(MAKER, lambda _step: self._prepare(root, make, alone, far), far, keep)
        finally:
            far.close()
        os.close(pidfd)
        try:
            message, fds = near.receive()
        except StageError as error:
            raise OSError(error.number, error.message) from error
        finally:
            near.close()
            os.waitpid(pid, 0)
        if not isinstance(message, Source) or len(fds) != 1:
            close_all(fds)
            raise StageError("1:INTER", "read", f"message of {MAKER}", "a mount was expected")
        return fds[0]

    def _prepare(self, root: Root, make: Callable[[], OwnedFd], alone: bool, main: Channel) -> None:
        os.fchdir(root.fileno())
        root.close()
        if alone:
            pivot_copy()
        else:
            os.chroot(".")
        with self._namespace as namespace:
            setns(namespace.fileno(), c.CLONE_NEWPID)
        pid, pidfd = clone_stage(MAKER, lambda _step: _make(make, main), main, ())
        os.close(pidfd)
        os.waitpid(pid, 0)


def _make(make: Callable[[], OwnedFd], main: Channel) -> None:
    with make() as mount:
        main.send(Source(), (mount.fileno(),))


def make_shared_world(
    step: Step, plan: LandlordPlan, main: Channel
) -> tuple[tuple[Door, ...], Terminal | None]:
    """1:INTER's part of an init: the whole of its world. Our next child is the one that is born into the namespace.

    Gives its doors, and its terminal if it is to have one: only who may mount can put that in its place.

    It has next to no capability that its program will not have, since who traces it could use them.
    """
    enter_remaining_namespaces(step, plan)
    enter_late_namespaces(step, plan)
    (namespace,) = (fd for join, fd in plan.joins if join.kind == c.CLONE_NEWPID)
    doors = open_own_doors(step, plan, plan.namespaces.kinds & ~c.CLONE_NEWPID)
    if plan.lets_in:
        doors += ((c.CLONE_NEWPID, OwnedFd(os.dup(namespace.fileno()))),)
    protect_world(step, plan, make_world(step, plan, main, InsideMaker(namespace)))
    terminal = None
    if plan.process.terminal:
        step.begin("make terminal")
        terminal = make_terminal(plan.process, landlord=True)
    enter_pid_namespace(step, 0, plan.joins)
    close_all(fd for _join, fd in plan.joins)
    give_up_capabilities(step, plan.process)
    return doors, terminal
