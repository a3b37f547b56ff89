"""The files of a pod that containerd leaves to us: /etc/hostname, hosts, resolv.conf, and /dev/shm.

They lie in one directory of the pod's own, which goes as a whole. Containers may write to them, so they are in a file
system of their own: where the directory is, nobody else could write any more once it were full. Writing them reads
files of the node's, and there is mounting to do: all of it is done by a child, `remove` too.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import MountError
from runtime.linux import mount as m
from runtime.linux.fds import OwnedFd
from runtime.linux.trees import mount_id, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shim.pod_plan import PodPlan

_DIRECTORY = "@pod"  # beside the containers' state directories, as no container can be called
_ETC, _SHM = "etc", "shm"
_NAMES = ("hostname", "hosts", "resolv.conf")
ETC_BYTES = 4 << 20  # those of the node's, and as much again
SHM_BYTES = 64 << 20  # as the podsandbox controller has it
_MOST_BYTES = 1 << 20  # of a file of the node's
_FLAGS = m.MS_NOSUID | m.MS_NODEV | m.MS_NOEXEC


class PodFiles:
    """The files of the pod whose state directory is `root`. Everything here may block: call it in a child."""

    def __init__(self, root: str) -> None:
        self.directory = f"{root}/{_DIRECTORY}"
        self._etc = f"{self.directory}/{_ETC}"

    def bundle_of(self, container_id: str) -> str:
        """The bundle of a container that containerd does not know of: the pod's landlord, where it has one."""
        return f"{self.directory}/{container_id}.bundle"

    @property
    def shm(self) -> str:
        """What the containers' /dev/shm is to be."""
        return f"{self.directory}/{_SHM}"

    @property
    def mounts(self) -> tuple[str, ...]:
        """All that may be mounted for the pod."""
        return self.shm, self._etc

    def sources(self) -> Mapping[str, str]:
        """Where each file of a container's lies, by its path there."""
        return {
            f"/etc/{name}": f"{self._etc}/{name}" for name in _NAMES if os.path.exists(f"{self._etc}/{name}")
        }

    def make(self, plan: PodPlan) -> None:
        """Write the files, in a mount of their own, and mount /dev/shm. OSError; what was made stays, for `remove`."""
        os.mkdir(self.directory, 0o711)  # a container's root in a user namespace looks files up here
        os.mkdir(self._etc, 0o700)
        m.mount("etc", self._etc, "tmpfs", _FLAGS, f"mode=0711,size={ETC_BYTES}")
        hostname = plan.hostname or os.uname().nodename
        owner = plan.root_ids()
        self._write("hostname", f"{hostname}\n".encode(), owner)
        self._copy("/etc/hosts", "hosts", owner)
        if plan.dns is None:
            self._copy("/etc/resolv.conf", "resolv.conf", owner)
        else:
            self._write("resolv.conf", plan.dns.encode(), owner)
        if "ipc" in plan.own:
            os.mkdir(self.shm, 0o700)
            options = f"mode=1777,size={SHM_BYTES},uid={owner[0]},gid={owner[1]}"
            m.mount("shm", self.shm, "tmpfs", _FLAGS, options)

    def remove(self) -> None:
        """Take all of it away, however much there is. OSError."""
        root, name = os.path.split(self.directory)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            with OwnedFd(os.open(root, flags)) as above:
                try:
                    with OwnedFd(os.open(name, flags | os.O_NOFOLLOW, dir_fd=above.fileno())) as own:
                        for mounted in (_SHM, _ETC):
                            _unmount(own.fileno(), mounted)
                except NotADirectoryError:
                    pass  # not ours, but in its place
                remove_tree(above.fileno(), name)
        except FileNotFoundError:
            pass

    def _write(self, name: str, content: bytes, owner: tuple[int, int]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with OwnedFd(os.open(f"{self._etc}/{name}", flags, 0o644)) as fd:
            os.fchmod(fd.fileno(), 0o644)  # whatever the umask is
            if owner != (0, 0):
                os.fchown(fd.fileno(), *owner)
            while content:
                content = content[os.write(fd.fileno(), content) :]

    def _copy(self, source: str, name: str, owner: tuple[int, int]) -> None:
        """A file of the node's that is not there is none of the pod's either."""
        try:
            with OwnedFd(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as fd:
                content = b""
                while len(content) < _MOST_BYTES and (
                    part := os.read(fd.fileno(), _MOST_BYTES - len(content))
                ):
                    content += part
        except FileNotFoundError:
            return
        self._write(name, content, owner)


def share_label(paths: Iterable[str], mount_label: str) -> None:
    """Give files of the pod's the SELinux label by which any of its containers may use them. MountError.

    It is a container's `mount_label` without categories, as `:z` gives it to a volume: without a pause container
    containerd knows of no label that is the pod's, and each container may have categories of its own.
    """
    label = ":".join([*mount_label.split(":")[:3], "s0"])
    for path in paths:
        try:
            os.setxattr(path, "security.selinux", f"{label}\0".encode(), follow_symlinks=False)
        except OSError as error:
            # Where there are none all files have one label, which is their mount's.
            if error.errno != errno.ENOTSUP:
                raise MountError(f"label {path} {label!r}: {os.strerror(error.errno or 0)}") from error


def _unmount(directory: int, name: str) -> None:
    """Detach what is mounted on `name` there, if something is. Containers keep what they have of it."""
    try:
        with OwnedFd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as there:
            if mount_id(there.fileno()) != mount_id(directory):
                m.umount2(f"/proc/self/fd/{directory}/{name}", m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
