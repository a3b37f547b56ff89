"""The namespaces of a pod, made without a process that stays: a child is born in them, sets them up, hands them over.

    main                                0:POD
      │ clone3(NEWIPC | NEWUTS …) ────────►│ files, user namespace, host name, sysctls
      │ ◄── Ready, with a descriptor each ─│ exit

They last as long as somebody holds the descriptors, and that is the shim alone: a killed shim leaves none behind,
and nothing is mounted for them. What else may block is done by the same child, still in the node's mount namespace.
"""

from __future__ import annotations

import _signal
import _socket
import errno
import fcntl
import os

from runtime.errors import StageError
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd, close_all
from runtime.linux.process import setns, unshare
from runtime.namespaces import KINDS
from runtime.stages.channel import Channel, channel_pair
from runtime.stages.clone import clone_stage, end_with
from runtime.stages.messages import MappingRequest, MappingWritten, Ready
from runtime.stages.stage1_namespaces import become_root_inside
from runtime.stages.stage2_init import bring_up_loopback
from runtime.sysctls import apply_sysctls
from runtime.user_mapping import write_mapping
from runtime.waiting import Claim, Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.stages.clone import Step
    from runtime.waiting import Operation
    from shim.pod_plan import PodPlan

MAKER = "0:POD"
TIMEOUT_S = 60.0
_NS_GET_USERNS = 0xB701  # linux/nsfs.h: the user namespace that another belongs to (Linux 4.9)


def make_namespaces(
    plan: PodPlan, prepare: Callable[[], None], keep: tuple[int, ...] = ()
) -> Operation[dict[str, OwnedFd]]:
    """The pod's namespaces by their OCI names, without that of its processes; the descriptors are the caller's.

    `prepare` is called in the child first, which has the descriptors `keep`. StageError with the step that failed.
    """
    near, far = channel_pair("main", MAKER)
    shim = os.getpid()
    flags = 0 if "user" in plan.own else plan.new  # which is to own the others: it comes first
    try:
        pid, number = clone_stage(
            MAKER, lambda step: _set_up(step, plan, prepare, far, shim), far, keep, flags
        )
    except OSError as error:
        near.close()
        raise StageError("main", "clone", MAKER, os.strerror(error.errno or 0), error.errno or 0) from error
    finally:
        far.close()
    with OwnedFd(number):
        yield Claim(pid)
        try:
            message, fds = yield from near.received((MappingRequest, Ready), TIMEOUT_S)
            if isinstance(message, MappingRequest):
                write_mapping(pid, plan.mapping())
                near.send(MappingWritten())
                message, fds = yield from near.received((Ready,), TIMEOUT_S)
        except BaseException as failure:
            _kill(number)
            if not isinstance(failure, GeneratorExit):
                yield Exit(pid, TIMEOUT_S)
            raise
        finally:
            near.close()
        assert isinstance(message, Ready)
        made = dict(zip(message.fds, fds, strict=True))
        try:
            yield Exit(pid, TIMEOUT_S)
        except BaseException:
            close_all(made.values())
            raise
    return made


def _kill(pidfd: int) -> None:
    try:
        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended, and said why


def _set_up(step: Step, plan: PodPlan, prepare: Callable[[], None], main: Channel, shim: int) -> None:
    end_with(shim)
    step.begin("make files of", f"pod {plan.id}")
    prepare()
    if plan.netns_path:
        step.begin("open network namespace", plan.netns_path)
        # Only for as long as it takes: it is the caller's mount of it, which could not be unmounted.
        with OwnedFd(os.open(plan.netns_path, os.O_RDONLY | os.O_CLOEXEC)) as network:
            _enter_user_namespace(step, plan, network, main)
            step.begin("join network namespace", plan.netns_path)
            setns(network.fileno(), c.CLONE_NEWNET)
    else:
        _enter_user_namespace(step, plan, None, main)
    if plan.new & c.CLONE_NEWNET:
        step.begin("bring up", "lo")
        bring_up_loopback()
    if plan.hostname:
        step.begin("set hostname", plan.hostname)
        _socket.sethostname(plan.hostname)
    step.begin("write sysctls")
    apply_sysctls(plan.sysctls)
    step.begin("hand over", "namespaces")
    names = tuple([name for name in plan.own if name != "pid"])
    paths = [f"/proc/self/ns/{KINDS[name][1]}" for name in names]
    opened = [OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) for path in paths]
    main.send(Ready(fds=names), tuple([fd.fileno() for fd in opened]))


def _enter_user_namespace(step: Step, plan: PodPlan, network: OwnedFd | None, main: Channel) -> None:
    """Where the pod has one of its own: the one that `network` belongs to, or a new one. All others are made in it."""
    if "user" not in plan.own:
        return
    if network is not None:
        step.begin("join the user namespace of", plan.netns_path)
        with OwnedFd(fcntl.ioctl(network.fileno(), _NS_GET_USERNS)) as owner:
            if os.path.samestat(os.fstat(owner.fileno()), os.stat("/proc/self/ns/user")):
                raise OSError(errno.EINVAL, "it belongs to the node's")
            setns(owner.fileno(), c.CLONE_NEWUSER)
    else:
        step.begin("map user namespace")
        unshare(c.CLONE_NEWUSER)
        main.send(MappingRequest())
        main.expect(MappingWritten)
    become_root_inside()
    step.begin("unshare namespaces")
    unshare(plan.new & ~c.CLONE_NEWUSER)
