"""Id-mapped mounts and other sources that init cannot open: decided here, and opened on the host's side.

`plan_id_map` is pure. `Sources` lives in a process that has the host's rights and stands in the container's
mount namespace: there it opens what the plan names, and nothing else, as detached mounts that init only has
to move into their places. Which process that is, and how it is asked, is the stages' business.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import ConfigError, ManorError, MountError, describe
from runtime.linux import mount as m
from runtime.linux.beneath import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from runtime.linux.fds import OwnedFd, close_all
from runtime.record import Record
from runtime.spec.checks import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.rootfs.options import MountOptions
    from runtime.rootfs.plan import BindStep, Step
    from runtime.spec.model import IdMapping, Linux, Mount

    # Makes a user namespace with these uid and gid maps (the kernel's format) that outlives its maker.
    MakeUserNamespace = Callable[[str, str], OwnedFd]

AT_FDCWD = -100


class IdMap(Record):
    """How a mount shows the owners of its files: by maps, or by those of the user namespace at `namespace`.

    `recursive` is for the mounts below it as well.
    """

    uid_map: str = ""
    gid_map: str = ""
    namespace: str = ""
    recursive: bool = False


def plan_id_map(path: str, mount: Mount, options: MountOptions, linux: Linux) -> IdMap | None:
    """The id map of a bind mount, None for none (config.md, "uidMappings"; "idmap" and "ridmap" of runc 1.2).

    Without maps of its own it has those of the container's user namespace. ConfigError where there is neither.
    """
    if not (options.id_mapped or mount.uid_mappings or mount.gid_mappings):
        return None
    if not options.bind and mount.type != "bind":
        raise ConfigError(path, f"only a bind mount can be id-mapped, and {named(mount.destination)} is none")
    uid_mappings, gid_mappings = mount.uid_mappings, mount.gid_mappings
    if not uid_mappings and not gid_mappings:
        for namespace in linux.namespaces:
            if namespace.type == "user" and namespace.path is not None:
                return IdMap(namespace=namespace.path, recursive=options.id_mapped_recursively)
        uid_mappings, gid_mappings = linux.uid_mappings, linux.gid_mappings
    if not uid_mappings or not gid_mappings:
        raise ConfigError(path, "an id-mapped mount needs uidMappings and gidMappings")
    return IdMap(_text(uid_mappings), _text(gid_mappings), recursive=options.id_mapped_recursively)


def _text(mappings: tuple[IdMapping, ...]) -> str:
    return "".join(f"{each.container_id} {each.host_id} {each.size}\n" for each in mappings)


class Sources:
    """The sources of a plan's bind mounts, to be opened by a privileged process. Owns the user namespaces it needs.

    Those are made or opened at once: this is called in the host's mount namespace, `open` in the container's.
    """

    __slots__ = ("_namespaces", "_root", "_steps")

    def __init__(self, root: str, steps: tuple[Step, ...], make_user_namespace: MakeUserNamespace) -> None:
        self._root = root
        self._steps = steps
        self._namespaces: dict[tuple[str, str, str], OwnedFd] = {}
        for step in steps:
            ids: IdMap | None = getattr(step, "id_map", None)
            if ids is None or _key(ids) in self._namespaces:
                continue
            try:
                self._namespaces[_key(ids)] = _user_namespace(ids, make_user_namespace)
            except (OSError, ManorError) as error:
                raise MountError(f"{step.path}: id map: {describe(error)}") from error

    def open(self, index: int) -> OwnedFd:
        """The source of step `index` as a detached mount, id-mapped where it is to be. MountError names it."""
        step: BindStep | None = self._steps[index] if 0 <= index < len(self._steps) else None  # type: ignore[assignment]
        if step is None or not hasattr(step, "id_map") or step.below_own_cgroup is not None:
            raise MountError(f"step {index} is not a bind mount to be opened by the host")
        try:
            tree = self._clone(step)
        except OSError as error:
            raise MountError(f"{step.path}: source {describe(error)}") from error
        try:
            if step.id_map is not None:
                self._map(step, tree, step.id_map)
        except BaseException:
            tree.close()
            raise
        return tree

    def _clone(self, step: BindStep) -> OwnedFd:
        if step.inside is None:
            return m.clone_tree(AT_FDCWD, step.source, recursive=step.recursive)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        with (
            openat2(AT_FDCWD, self._root, flags, RESOLVE_NO_MAGICLINKS) as root,
            openat2(root.fileno(), step.inside, os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) as place,
        ):
            return m.clone_tree(place.fileno(), recursive=step.recursive)

    def _map(self, step: BindStep, tree: OwnedFd, ids: IdMap) -> None:
        try:
            m.map_ids(tree.fileno(), self._namespaces[_key(ids)].fileno(), ids.recursive)
        except OSError as error:
            hint = ""
            if error.errno == errno.EINVAL:
                hint = " (does its file system support that with this kernel?)"
            raise MountError(
                f"{step.path}: map the ids of {named(step.source)}: {describe(error)}{hint}"
            ) from error

    def close(self) -> None:
        """Close the user namespaces; mounts that were made with them keep them."""
        close_all(self._namespaces.values())


def _key(ids: IdMap) -> tuple[str, str, str]:
    return ids.uid_map, ids.gid_map, ids.namespace


def _user_namespace(ids: IdMap, make_user_namespace: MakeUserNamespace) -> OwnedFd:
    if ids.namespace:
        return OwnedFd(os.open(ids.namespace, os.O_RDONLY | os.O_CLOEXEC))
    return make_user_namespace(ids.uid_map, ids.gid_map)
