"""The mounts that make a container's root file system, which the caller of Create leaves to the shim.

Mounting reads disks and unmounting writes them: either may take seconds, and on a dead file server for
ever. So both are done by short-lived children, the one that creates the container and one of its own, and
the loop waits for their answers with a time limit. A child can also change directory, which shortens
overlay options past what one page of mount data holds.
"""

from __future__ import annotations

import _signal
import errno
import os

from runtime.errors import MountError, StageError
from runtime.linux import mount as linux
from runtime.linux.fds import OwnedFd
from runtime.record import Record
from runtime.rootfs.options import bind_change, parse_options
from runtime.stages.channel import ChannelClosed, channel_pair
from runtime.stages.clone import clone_stage
from runtime.waiting import Claim, Exit, Readable
from shim.mapped_mounts import MappedMount, split_layers, take_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from runtime.rootfs.options import MountOptions
    from runtime.stages.clone import Step
    from runtime.waiting import Operation
    from shim.api.types import Mount
    from shim.mapped_mounts import IdMaps

    AnyStep: TypeAlias = "MountStep | MappedMount"

TIMEOUT_S = 60.0
# mount(2) takes one page of options; a little is left for what the kernel adds.
_MAX_DATA = os.sysconf("SC_PAGE_SIZE") - 512
_UMOUNT_NOFOLLOW = 8


class MountStep(Record):
    """One mount(2) call. `base` is a directory to be in, for a source or options that are relative to it."""

    source: str
    target: str
    fstype: str
    flags: int
    data: str
    base: str = ""


def plan(mounts: Sequence[Mount], rootfs: str) -> tuple[AnyStep, ...]:
    """What to call for `mounts` below `rootfs`, in order. MountError for what can't be mounted there."""
    return tuple([_plan_one(mount, rootfs) for mount in mounts])


def _plan_one(mount: Mount, rootfs: str) -> AnyStep:
    if mount.target and ".." in mount.target.split("/"):
        raise MountError(f"mount {mount.source}: target {mount.target} leads out of the root")
    target = f"{rootfs}/{mount.target.strip('/')}" if mount.target.strip("/") else rootfs
    maps, rest = take_maps(list(mount.options))
    options = parse_options(tuple(rest))
    if maps is not None:
        return _plan_mapped(mount, target, options, maps)
    base, words = "", list(options.data)
    if mount.type == "overlay" and sum(len(word) + 1 for word in words) > _MAX_DATA:
        base, words = _shorten_overlay(words)
    return MountStep(mount.source, target, mount.type, options.flags, _data(mount, target, words), base)


def _plan_mapped(mount: Mount, target: str, options: MountOptions, maps: IdMaps) -> MappedMount:
    words: list[str] = list(options.data)
    layers: list[str] = []
    if mount.type == "overlay":
        layers, words = split_layers(words)
    change = bind_change(options) if options.bind else None
    data = _data(mount, target, words)
    attributes = 0 if change is None else change.set
    return MappedMount(mount.source, target, mount.type, options.flags, data, maps, attributes, tuple(layers))


def _data(mount: Mount, target: str, words: list[str]) -> str:
    data = ",".join(words)
    if len(data) > _MAX_DATA:
        raise MountError(f"mount {mount.type} on {target}: {len(data)} bytes of options are too many")
    return data


def _shorten_overlay(words: list[str]) -> tuple[str, list[str]]:
    """Give lowerdir's layers relative to the directory they have in common; containerd's snapshots do."""
    for number, word in enumerate(words):
        if word.startswith("lowerdir="):
            layers = word.removeprefix("lowerdir=").split(":")
            base = os.path.commonpath(layers) if len(layers) > 1 else ""
            if base in ("", "/"):
                break
            short = ":".join(layer[len(base) + 1 :] or "." for layer in layers)
            return base, [*words[:number], f"lowerdir={short}", *words[number + 1 :]]
    return "", words


def mount_all(steps: Sequence[AnyStep]) -> None:
    """Mount, in this process. MountError with source and target, and nothing left mounted, when one fails."""
    done: list[str] = []
    try:
        for one in steps:
            try:
                if isinstance(one, MappedMount):
                    one.mount()
                else:
                    _mount(one)
            except OSError as error:
                cause = os.strerror(error.errno or 0)
                raise MountError(f"mount {one.source} on {one.target}: {cause}") from error
            done.append(one.target)
    except BaseException:
        for target in reversed(done):
            linux.umount2(target, linux.MNT_DETACH | _UMOUNT_NOFOLLOW)
        raise


def unmount_all(rootfs: str) -> Operation[None]:
    """Take away everything that is mounted on `rootfs`, in a child. MountError if something stays."""

    def run(step: Step) -> None:
        _signal.alarm(int(TIMEOUT_S))
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
        step.begin("unmount", rootfs)
        unmount(rootfs)

    yield from in_child("unmount", run, ends_by_itself=True)


def unmount(rootfs: str) -> None:
    """The same, in this process. What is still in use is detached, and goes when it no longer is.

    Where nothing is mounted nothing is asked of the kernel: umount2(2) may take longer than who asks waits, and asks
    again.
    """
    flags = _UMOUNT_NOFOLLOW
    while True:
        try:
            if not linux.is_mount_point(rootfs):
                return
            linux.umount2(rootfs, flags)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # not a mount point any more
                return
            if error.errno != errno.EBUSY or flags & linux.MNT_DETACH:
                raise
            flags |= linux.MNT_DETACH


def _mount(step: MountStep) -> None:
    if step.base:
        os.chdir(step.base)
    linux.mount(step.source, step.target, step.fstype, step.flags, step.data or None)
    if step.flags & linux.MS_BIND and step.flags & ~(linux.MS_BIND | linux.MS_REC):
        # A bind mount takes its other flags only when it is mounted again.
        linux.mount("", step.target, None, step.flags | linux.MS_REMOUNT, None)


def in_child(name: str, run: Callable[[Step], None], ends_by_itself: bool = False) -> Operation[None]:
    """Do `run` in a child of its own. MountError when it fails or is not done within TIMEOUT_S.

    A child that `ends_by_itself` goes on when the caller's time is over: whoever asks again wants the same.
    """
    near, far = channel_pair("main", f"{name} child")
    try:
        pid, number = clone_stage(name, run, far, ())
    except OSError as error:
        near.close()
        raise MountError(f"{name}: clone: {os.strerror(error.errno or 0)}") from error
    finally:
        far.close()
    pidfd = OwnedFd(number)
    yield Claim(pid)
    try:
        yield Readable(near.fileno(), TIMEOUT_S)
        near.receive()
    except ChannelClosed:
        status = yield Exit(pid, TIMEOUT_S)
        if status:
            raise MountError(f"{name}: the child ended with wait status {status}") from None
    except StageError as error:
        raise MountError(f"{error.operation} {error.subject}: {error.message}") from error
    except TimeoutError:
        # It may be stuck in the kernel, where not even SIGKILL reaches it; the reaper takes it in time.
        if not ends_by_itself:
            _signal.pidfd_send_signal(number, _signal.SIGKILL)
        raise MountError(f"{name}: not done within {TIMEOUT_S:g} s") from None
    finally:
        near.close()
        pidfd.close()
