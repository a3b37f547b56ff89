"""Root file systems of pods with a user namespace: their files shown with the ids that the pod has on the host.

containerd says so by two mount options, `uidmap=` and `gidmap=` with CONTAINER:HOST:SIZE,… (core/mount). Most file
systems are mounted and shown through the maps. An overlay cannot be (overlayfs takes no id-mapped mount of itself):
its lower layers are, and the upper one holds what the pod writes with ids that are right already.

A layer that is id-mapped is a mount of its own, and overlayfs takes layers by path: so each must stand somewhere. It
does in the mount namespace of a child, `0:LAYERS`, on a tmpfs of that namespace, and goes with it; what the child hands
over is the finished mount, detached. On the host nothing but the root file system itself is ever mounted, and nothing
is left by a child that is killed. Layers by number also are the shortest options there can be.

    creator                                  0:LAYERS
      │ make user namespace                      │
      │ clone, CLONE_NEWNS ─────────────────────►│ tmpfs on the root's place; each layer cloned, mapped, put
      │                                          │ below it as 0, 1, …; overlay over 0:1:…
      │ ◄───────── Source, with the mount's fd ──│ exit
      │ put it in its place                      │
"""

from __future__ import annotations

import errno
import os

from runtime.errors import MountError, StageError
from runtime.linux import constants as c
from runtime.linux import mount as linux
from runtime.linux.fds import OwnedFd
from runtime.record import Record
from runtime.stages.channel import ChannelClosed, channel_pair
from runtime.stages.clone import clone_stage
from runtime.stages.messages import Source
from runtime.stages.mount_sources import make_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step

LAYERS = "0:LAYERS"
MOST_LAYERS = 500  # as many as overlayfs takes
_AT_FDCWD = -100
_HIGHEST_ID = (1 << 32) - 1
_LOWER = "lowerdir="
_MADE = "made"


class IdMaps(Record):
    """Maps of a mount, in the kernel's format (user_namespaces(7))."""

    uids: str
    gids: str


def take_maps(options: list[str]) -> tuple[IdMaps | None, list[str]]:
    """The maps among mount options, and the other options. MountError for one that is none, or stands alone."""
    maps = {"uidmap": "", "gidmap": ""}
    others = []
    for option in options:
        name, equals, value = option.partition("=")
        if equals and name in maps:
            maps[name] = _kernel_format(option, value)
        else:
            others.append(option)
    if all(maps.values()):
        return IdMaps(maps["uidmap"], maps["gidmap"]), others
    if any(maps.values()):
        raise MountError("mount options: uidmap= and gidmap= must both be there")
    return None, others


def _kernel_format(option: str, text: str) -> str:
    lines = []
    for part in text.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(each.isascii() and each.isdecimal() for each in numbers):
            raise MountError(f"mount option {option[:100]}: CONTAINER:HOST:SIZE is expected")
        inside, outside, size = map(int, numbers)
        if not size or max(inside, outside) + size > _HIGHEST_ID:
            raise MountError(f"mount option {option[:100]}: {part} is no range of ids")
        lines.append(f"{inside} {outside} {size}\n")
    return "".join(lines)


def split_layers(words: list[str]) -> tuple[list[str], list[str]]:
    """The layers of an overlay's options, uppermost first, and the options for these by number. MountError."""
    layers: list[str] = []
    others = []
    for word in words:
        if word.startswith(_LOWER):
            layers = word.removeprefix(_LOWER).split(":")
            others.append(_LOWER + ":".join(map(str, range(len(layers)))))
        else:
            others.append(word)
    if not layers or not all(layer.startswith("/") for layer in layers) or len(layers) > MOST_LAYERS:
        raise MountError(f"mount overlay: its layers cannot be mapped: {':'.join(layers)[:100]!r}")
    return layers, others


class MappedMount(Record):
    """One id-mapped mount. `attributes` are MOUNT_ATTR_* of a bind mount; `flags` and `data` are mount(2)'s."""

    source: str
    target: str
    fstype: str
    flags: int
    data: str
    maps: IdMaps
    attributes: int = 0
    layers: tuple[str, ...] = ()

    def mount(self) -> None:
        """Make it and put it in its place. OSError, MountError."""
        with make_user_namespace(self.maps.uids, self.maps.gids) as owner, self._made(owner) as tree:
            place = OwnedFd(os.open(self.target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            with place:
                linux.move_mount(tree.fileno(), place.fileno())

    def _made(self, owner: OwnedFd) -> OwnedFd:
        near, far = channel_pair("0:CREATE", LAYERS)
        try:
            pid, pidfd = clone_stage(
                LAYERS, lambda step: self._make(step, owner, far), far, (owner.fileno(),), c.CLONE_NEWNS
            )
        finally:
            far.close()
        os.close(pidfd)
        try:
            _message, fds = near.receive()
            return fds[0]
        except ChannelClosed:
            raise MountError(f"mount {self.source} on {self.target}: {LAYERS} was killed") from None
        except StageError as error:
            cause = f"{error.operation} {error.subject}: {error.message}"
            raise MountError(f"mount {self.source} on {self.target}: {cause}") from error
        finally:
            near.close()
            os.waitpid(pid, 0)

    # ---- in the child ------------------------------------------------------------------------

    def _make(self, step: Step, owner: OwnedFd, main: Channel) -> None:
        step.begin("leave the mounts of the host")
        linux.mount("", "/", None, linux.MS_REC | linux.MS_SLAVE)
        if self.flags & linux.MS_BIND:
            step.begin("map ids", self.source)
            recursive = bool(self.flags & linux.MS_REC)
            tree = _mapped(self.source, owner, recursive)
            if self.attributes:
                linux.mount_setattr(tree.fileno(), set_=self.attributes)
        else:
            step.begin("make a place", self.target)
            linux.mount("layers", self.target, "tmpfs", linux.MS_NOSUID, "mode=700")
            os.chdir(self.target)
            os.mkdir(_MADE)
            tree = self._overlay(step, owner) if self.fstype == "overlay" else self._other(step, owner)
        with tree:
            main.send(Source(), (tree.fileno(),))

    def _overlay(self, step: Step, owner: OwnedFd) -> OwnedFd:
        for number, layer in enumerate(self.layers):
            step.begin("map ids of layer", layer)
            os.mkdir(str(number))
            place = OwnedFd(os.open(str(number), os.O_PATH | os.O_CLOEXEC))
            with place, _mapped(layer, owner) as tree:
                linux.move_mount(tree.fileno(), place.fileno())
        step.begin("mount overlay", self.target)
        linux.mount(self.source, _MADE, self.fstype, self.flags, self.data)
        return linux.clone_tree(_AT_FDCWD, _MADE)

    def _other(self, step: Step, owner: OwnedFd) -> OwnedFd:
        step.begin(f"mount {self.fstype}", self.source)
        linux.mount(self.source, _MADE, self.fstype, self.flags, self.data or None)
        step.begin("map ids", self.source)
        return _mapped(_MADE, owner)


def _mapped(path: str, owner: OwnedFd, recursive: bool = False) -> OwnedFd:
    """`path` as a detached mount that shows the ids of the user namespace `owner`. MountError says why not."""
    try:
        tree = linux.clone_tree(_AT_FDCWD, path, recursive)
        try:
            linux.map_ids(tree.fileno(), owner.fileno(), recursive)
        except OSError:
            tree.close()
            raise
    except OSError as error:
        hint = " (does its file system support that with this kernel?)" if error.errno == errno.EINVAL else ""
        raise MountError(f"{os.strerror(error.errno or 0)}{hint}") from error
    return tree
