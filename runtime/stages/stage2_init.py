"""Stage 2 of a landlord: from bare namespaces to the container's own world, then the program.

We are in 2:INIT. Our job is the root file system, the host name, the credentials, and to wait at the
start gate. The order of the steps is the security of the container; where it matters a comment says why.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
import time

from runtime.labels import make_session_keyring
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd, close_all
from runtime.linux.process import setdomainname, setns, unshare
from runtime.namespaces import enter
from runtime.rootfs.apply import apply_mounts
from runtime.rootfs.pivot import make_cwd, pivot_into
from runtime.rootfs.protect import protect
from runtime.stages.messages import HostDone, HostRequest, Start
from runtime.stages.mount_sources import HostsSources
from runtime.stages.program import announce, prepare_program, run_program
from runtime.stages.stage1_namespaces import LATE_KINDS
from runtime.stages.start_gate import await_start, open_doors
from runtime.sysctls import apply_sysctls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from runtime.rootfs.apply import MakeInside, MountedRoot
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import LandlordPlan
    from runtime.stages.program import Terminal
    from runtime.stages.start_gate import Door


def become_init(step: Step, plan: LandlordPlan, main: Channel) -> NoReturn:
    """The list of steps of a container's start, in order. `namespaces` not made by the clone are entered by now."""
    enter_late_namespaces(step, plan)
    close_all(fd for _join, fd in plan.joins)
    doors = open_own_doors(step, plan, plan.namespaces.kinds)
    protect_world(step, plan, make_world(step, plan, main))
    finish_init(step, plan, doors, main)


def open_own_doors(step: Step, plan: LandlordPlan, kinds: int) -> tuple[Door, ...]:
    """What a tenant is to be let in by while we wait at the start gate, if we are to: our namespaces of `kinds`."""
    if not plan.lets_in:
        return ()
    step.begin("open own namespaces")
    return open_doors(kinds)


def make_world(
    step: Step, plan: LandlordPlan, main: Channel, make_inside: MakeInside | None = None
) -> MountedRoot:
    """From bare namespaces to the container's root. `make_inside`: we are not in the PID namespace it is to have."""
    new = plan.namespaces.new
    name_the_host(step, plan)
    if new & c.CLONE_NEWNET:
        step.begin("bring up", "lo")
        bring_up_loopback()
    step.begin("mount root file system", plan.rootfs.root)
    host = HostsSources(main)
    mounted = apply_mounts(plan.rootfs, host.open, make_inside)
    host.close()
    if plan.asks_host:
        step.begin("wait for host")
        main.send(HostRequest())  # hooks must see the mounts, but still by the host's root
        net_devices = main.expect(HostDone).net_devices
        if net_devices and plan.set_up_net_devices is not None:
            step.begin("set up network devices")
            plan.set_up_net_devices(net_devices)
    if plan.create_container_hooks is not None:
        step.begin("run createContainer hooks")
        plan.create_container_hooks()
    step.begin("pivot into", plan.rootfs.root)
    pivot_into(mounted)
    return mounted


def protect_world(step: Step, plan: LandlordPlan, mounted: MountedRoot) -> None:
    """In the container's root: what is left of its protection, and takes rights that its program will not have."""
    step.begin("make working directory", plan.process.cwd)
    make_cwd(mounted)
    step.begin("write sysctls")
    apply_sysctls(plan.sysctls)  # before /proc/sys becomes read-only
    step.begin("mask and protect paths")
    protect(mounted)


def finish_init(
    step: Step, plan: LandlordPlan, doors: tuple[Door, ...], main: Channel, terminal: Terminal | None = None
) -> NoReturn:
    """In the finished world: the program. `terminal` is its, if that was made with the world."""
    if plan.keyring:
        step.begin("make session keyring")
        make_session_keyring(plan.id, bool(plan.namespaces.new & c.CLONE_NEWUSER), plan.process.selinux_label)
    prepared = prepare_program(step, plan.process, main, landlord=True, terminal=terminal)
    announce(step, prepared, main)
    if plan.gate is not None:
        main.continue_with(await_start(plan.gate, doors))  # who starts us is told how it went
    main.expect(Start)
    run_program(step, prepared, plan.start_container_hooks)


def enter_late_namespaces(step: Step, plan: LandlordPlan) -> None:
    """Cgroup and time: the two that cannot be flags of the clone."""
    for join, fd in plan.joins:
        if join.kind & LATE_KINDS:
            step.begin(f"join {join.name} namespace", join.path)
            before = time.monotonic_ns()
            enter(join, fd.fileno())
            if join.kind == c.CLONE_NEWTIME:
                step.timeline.set_ahead(time.monotonic_ns() - before)
    if plan.namespaces.new & c.CLONE_NEWCGROUP:
        # After the last cgroup join: its root is the cgroup that we are in at this moment.
        step.begin("unshare cgroup namespace")
        unshare(c.CLONE_NEWCGROUP)
    if plan.namespaces.new & c.CLONE_NEWTIME:
        step.begin("make time namespace")
        if not plan.namespaces.new & c.CLONE_NEWUSER:  # else it was made before that was mapped
            make_time_namespace(plan.time_offsets)
        with OwnedFd(os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)) as ours:
            setns(ours.fileno(), c.CLONE_NEWTIME)
        step.timeline.set_ahead(plan.monotonic_offset_ns)


def make_time_namespace(offsets: str) -> None:
    """time_namespaces(7): unshare makes it for our children; the offsets are open until somebody is in it."""
    unshare(c.CLONE_NEWTIME)
    if offsets:
        write_file("/proc/self/timens_offsets", offsets)


def enter_remaining_namespaces(step: Step, plan: LandlordPlan) -> None:
    """What stage 1 left to us when it did the user namespace: the new ones, which that namespace then owns."""
    remaining = plan.namespaces.new & ~(c.CLONE_NEWUSER | c.CLONE_NEWPID | LATE_KINDS)
    step.begin("unshare namespaces")
    unshare(remaining)


def name_the_host(step: Step, plan: LandlordPlan) -> None:
    """sethostname(2) and setdomainname(2), where the container has a UTS namespace of its own."""
    if plan.hostname is not None:
        step.begin("set hostname", plan.hostname)
        _socket.sethostname(plan.hostname)
    if plan.domainname is not None:
        step.begin("set domainname", plan.domainname)
        setdomainname(plan.domainname)


def write_file(path: str, content: str) -> None:
    """One write(2) of `content` to a file of the host's /proc, as long as that is still what we see. OSError."""
    with OwnedFd(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd.fileno(), content.encode())


SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def bring_up_loopback() -> None:
    """netdevice(7): a new network namespace has `lo` down."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = fcntl.ioctl(sock.fileno(), SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        flags: int = struct.unpack("16sH22x", request)[1]
        fcntl.ioctl(sock.fileno(), SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | IFF_UP))
    finally:
        sock.close()
