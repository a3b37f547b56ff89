"""What the stages are told before the clone: decided and compiled in stage 0, plain values from there on.

A child inherits these records with its memory, so nothing of them crosses a channel. Whatever can be
refused is refused while they are made; the stages only carry them out.
"""

from __future__ import annotations

from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.affinity import AffinityPlan
    from runtime.cgroups.transient_cpuset import TransientCpuset
    from runtime.credentials import Credentials
    from runtime.limits import MemoryPlan
    from runtime.linux.fds import OwnedFd
    from runtime.namespaces import Join, NamespacePlan
    from runtime.rootfs.plan import RootfsPlan
    from runtime.seccomp import Filter
    from runtime.spec.model import ConsoleSize
    from runtime.stages.start_gate import Door
    from runtime.sysctls import SysctlWrite
    from runtime.user_mapping import UserMapping

# How stage 1's work is done; the choice is `landlord.choose_shape`'s and `tenant.choose_tenant_shape`'s.
DIRECT = "direct"
STAGED = "staged"


class Stdio(Record):
    """The three standard descriptors of a child, borrowed from the caller; -1 stands for /dev/null."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1


class ProcessPlan(Record):
    """What a program's start needs whoever it is: landlord or tenant."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    credentials: Credentials
    no_new_privileges: bool
    seccomp: Filter | None
    apparmor_profile: str | None
    selinux_label: str | None
    terminal: bool
    console_size: ConsoleSize | None
    stdio: Stdio
    personality: int | None
    memory_policy: MemoryPlan | None
    preserved_fds: int = 0


class LandlordPlan(Record):
    """A container's init. `sibling`: its stages are to be children of our parent, who is going to reap them.

    `asks_host`: stage 0 has something to do once the mounts stand, or init is to run a hook, which must not begin
    before the limits are set. The hooks, and what takes over network devices, are calls: few containers have them, and
    the stages need not know how they are done. `gate` is the listening socket that init waits at; without one, the
    process that has made it starts it. `lets_in`: it gives its namespaces there to who could not enter them otherwise.
    `keyring`: it gets a session keyring of its own.
    """

    id: str
    namespaces: NamespacePlan
    joins: tuple[tuple[Join, OwnedFd], ...]
    mapping: UserMapping | None
    rootfs: RootfsPlan
    hostname: str | None
    domainname: str | None
    sysctls: tuple[SysctlWrite, ...]
    time_offsets: str
    monotonic_offset_ns: int
    asks_host: bool
    process: ProcessPlan
    set_up_net_devices: Callable[[str], None] | None = None
    create_container_hooks: Callable[[], None] | None = None
    start_container_hooks: Callable[[], None] | None = None
    gate: OwnedFd | None = None
    lets_in: bool = False
    keyring: bool = True
    sibling: bool = False


class TenantPlan(Record):
    """An exec: a process that joins the namespaces `kinds` of the landlord behind `landlord_pidfd`.

    `cpuset` is entered before its cgroup, to be bound to CPUs that we may not use ourselves. `doors` are those
    namespaces where the landlord has given them, the user namespace first: they are entered by those instead.
    """

    container_id: str
    landlord_pid: int
    landlord_pidfd: int
    kinds: int
    affinity: AffinityPlan
    process: ProcessPlan
    keyring: bool = True
    cpuset: TransientCpuset | None = None
    doors: tuple[Door, ...] = ()

    def door(self, kind: int) -> int:
        """What the landlord's namespace of `kind` is entered by: setns(2) takes a pidfd as well as a namespace."""
        return next((fd.fileno() for each, fd in self.doors if each == kind), self.landlord_pidfd)
