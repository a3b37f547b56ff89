"""A container as the process that made it knows it, and a tenant of it.

Holds what must not be looked up again: pidfd, cgroup, spec, the open start gate. What may be done with it
is in `operations`; what others can know of it is in state.json.
"""

from __future__ import annotations

import os

from runtime import state
from runtime.errors import InvalidState
from runtime.linux.fds import OwnedFd
from runtime.record import Record
from runtime.user_mapping import caller, groups_are_denied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.cgroup import Cgroup
    from runtime.cgroups.layout import Layout
    from runtime.cgroups.leaf import Leaf
    from runtime.cgroups.systemd import Systemd
    from runtime.limits import MemoryPlan
    from runtime.linux.seccomp import Filter
    from runtime.spec.model import Capabilities, ExecCpuAffinity, Hooks, Process, Spec
    from runtime.stages.plan import Stdio
    from runtime.stages.stage0_parent import Launched
    from runtime.trace import Marks


class Host(Record):
    """What operations need of the machine, found out once.

    `root` holds one directory a container, `seccomp_cache` the compiled filters, `procfs` is the host's
    /proc. With `degrade` a limit that may not be set (no CAP_SYS_RESOURCE) is lowered with a warning
    instead of failing the start. `systemd_cgroup` chooses the cgroup driver, None leaves it to the form of the
    cgroupsPath; `systemd` gives the way to systemd, and is called where that driver is used, only.
    `setgroups_denied`: nobody that we start may set its groups.
    """

    root: str
    layout: Layout
    seccomp_cache: str
    procfs: OwnedFd
    degrade: bool = False
    systemd_cgroup: bool | None = None
    systemd: Callable[[], Systemd] | None = None
    rootless: bool = False
    setgroups_denied: bool = False


def open_host(
    root: str,
    seccomp_cache: str,
    layout: Layout,
    systemd_cgroup: bool | None = None,
    systemd: Callable[[], Systemd] | None = None,
    rootless: bool = False,
) -> Host:
    """A Host for `root`; the caller owns its `procfs`."""
    procfs = OwnedFd(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return Host(
        root,
        layout,
        seccomp_cache,
        procfs,
        False,
        systemd_cgroup,
        systemd,
        rootless,
        groups_are_denied(caller()),
    )


class CreateOptions(Record):
    """What a command line may ask for. `gate`: init waits for another process to start it, not for its maker.

    `preserved_fds`: how many descriptors from 3 on the program is to have. `directories` (0755) are made in the
    container's own before anything is mounted.
    """

    gate: bool = False
    no_pivot: bool = False
    keyring: bool = True
    preserved_fds: int = 0
    directories: tuple[str, ...] = ()


class CreateRequest(Record):
    """What a container is made of. `bundle` is absolute; `shape` forces the stages' shape (tests), "" chooses.

    `prepare` is called when state.json says what there will be to clean up, before anything else is made: to mount
    the root file system, say. It may block and raise; what it has done is the caller's to undo.
    """

    id: str
    bundle: str
    spec: Spec
    stdio: Stdio
    shape: str = ""
    sibling: bool = False
    options: CreateOptions = CreateOptions()
    prepare: Callable[[], None] | None = None


class ExecOptions(Record):
    """What a command line may ask for an exec. `cgroup`: sub-cgroups below the container's, by controllers.

    `strict`: join the container's cgroup or fail; else the one that init is in serves where it can't be joined.
    `ignore_paused`: wait in the frozen cgroup instead of refusing. `leaf`: be born in a v2 cgroup of its own below the
    container's (`runtime.cgroups.leaf`), where it can have one.
    """

    cgroup: tuple[tuple[str, str], ...] = ()
    strict: bool = False
    ignore_paused: bool = False
    keyring: bool = True
    preserved_fds: int = 0
    leaf: bool = False


class ExecRequest(Record):
    """What a tenant is made of; `process` is the exec's own, complete OCI process."""

    process: Process
    stdio: Stdio
    shape: str = ""
    options: ExecOptions = ExecOptions()


class Terms(Record):
    """What tenants of a container take over from it, and what its end will ask for: all that is kept of its config.

    `namespaces` are those the container does not share with its runtime, as CLONE_NEW* flags. `affinity`
    and `transition` are the container's own execCPUAffinity and the value of the annotation for isolated
    CPUs. `cpuset` is the list the container was
    configured with. `init_is_first`: init is the first of its PID namespace, so that the kernel ends all others
    with it. `hooks` are those still to be run: startContainer's (its being there), poststart and poststop.
    `listener` is the path and the metadata for the seccomp listener. `rdt` is the resctrl group that init is in,
    and whether it is ours to remove. `root_on_host` is its root where it has no mount namespace of its own, so that
    its mounts are still there when it has ended. `keyring`: it has a session keyring, which tenants join.
    """

    namespaces: int
    init_is_first: bool
    oci_version: str = ""
    annotations: dict[str, str] | None = None
    filter: Filter | None = None
    personality: int | None = None
    memory_policy: MemoryPlan | None = None
    umask: int | None = None
    capabilities: Capabilities | None = None
    cpuset: str | None = None
    affinity: ExecCpuAffinity | None = None
    transition: str | None = None
    hooks: Hooks | None = None
    listener: tuple[str, str] | None = None
    rdt: tuple[str, bool] | None = None
    root_on_host: str = ""
    keyring: bool = True


class Container:
    """A created container. Who holds it owns its fds; `close` gives them back."""

    __slots__ = (
        "bundle",
        "cgroup",
        "console",
        "created",
        "host",
        "id",
        "marks",
        "pid",
        "pidfd",
        "start_gate",
        "start_time",
        "status",
        "terms",
        "warnings",
    )

    def __init__(
        self, host: Host, container_id: str, bundle: str, launched: Launched, cgroup: Cgroup, terms: Terms
    ) -> None:
        self.host = host
        self.id = container_id
        self.bundle = bundle
        self.pid = launched.pid
        self.pidfd: OwnedFd = launched.pidfd
        self.start_gate: Launched | None = launched
        self.console: OwnedFd | None = launched.console
        self.cgroup = cgroup
        self.terms = terms
        self.status = state.CREATING
        self.start_time = 0
        self.created = ""
        self.marks: Marks = ()
        self.warnings = launched.warnings

    def become(self, status: str) -> None:
        """Change the status. InvalidState where the table does not allow it."""
        self.status = state.transition(self.status, status)

    def require(self, operation: str, *allowed: str) -> None:
        """InvalidState, saying what was asked for, unless the status is one of `allowed`."""
        if self.status not in allowed:
            raise InvalidState(f"cannot {operation} container {self.id} in {self.status} state")

    def ended(self) -> None:
        """Init has been seen to end."""
        self.status = state.STOPPED
        if self.start_gate is not None:
            self.start_gate.channel.close()
            self.start_gate = None

    def directory(self) -> str:
        """Where its state is."""
        return f"{self.host.root}/{self.id}"

    def leave(self) -> None:
        """Close what we hold of it, and let it live."""
        if self.start_gate is not None:
            self.start_gate.channel.close()
            self.start_gate = None
        self.pidfd.close()
        if self.console is not None:
            self.console.close()

    def close(self) -> None:
        """Close what is still open."""
        self.ended()
        self.pidfd.close()
        if self.console is not None:
            self.console.close()


class Tenant:
    """An exec that has been started.

    `cgroup` says which it joined: the container's "own", a "leaf" below it, a "sub" one that was asked for, or the one
    that the "landlord" is in, with what stood in the way of the own one as `cgroup_why`. `leaf` is there if it joined
    one, and the caller's to close, as `console` is.
    """

    __slots__ = ("cgroup", "cgroup_why", "console", "leaf", "marks", "pid", "pidfd", "start_time", "warnings")

    def __init__(self, launched: Launched, leaf: Leaf | None, start_time: int, marks: Marks) -> None:
        self.pid = launched.pid
        self.pidfd: OwnedFd = launched.pidfd
        self.console: OwnedFd | None = launched.console
        self.cgroup, self.cgroup_why = launched.cgroup, launched.cgroup_why
        self.leaf = leaf
        self.warnings = launched.warnings
        self.start_time = start_time
        self.marks = marks
