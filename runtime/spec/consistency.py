"""What the parts of a Spec ask of each other: a hostname needs a UTS namespace, and so on.

Each rule is a pure function over the finished Spec and raises ConfigError with the JSON path of the part
that cannot be had. The rules are runc 1.5's (configs/validate); those that need to look at the machine
(is SELinux on, does a path exist) belong to the modules that act on them.
"""

from __future__ import annotations

from runtime.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import Namespace, Spec

INTERFACE_NAME_BYTES = 15  # IFNAMSIZ less the final NUL


def check_consistency(spec: Spec) -> None:
    """ConfigError for the first part of `spec` that contradicts another."""
    namespaces = _by_type(spec)
    _check_user_namespace(spec, namespaces)
    _check_time_namespace(spec, namespaces)
    _check_net_devices(spec, namespaces)
    if "uts" not in namespaces:
        for name in ("hostname", "domainname"):
            if getattr(spec, name):
                raise ConfigError(name, "cannot be set without a UTS namespace of the container's own")
    if "mount" not in namespaces:
        for path, asked in (
            ("maskedPaths", spec.linux.masked_paths),
            ("readonlyPaths", spec.linux.readonly_paths),
        ):
            if asked:
                raise ConfigError(
                    f"linux.{path}", "cannot be set without a mount namespace of the container's own"
                )


def _by_type(spec: Spec) -> dict[str, Namespace]:
    found: dict[str, Namespace] = {}
    for index, namespace in enumerate(spec.linux.namespaces):
        if namespace.type in found:
            raise ConfigError(f"linux.namespaces[{index}].type", f"{namespace.type} appears twice")
        found[namespace.type] = namespace
    return found


def _check_user_namespace(spec: Spec, namespaces: dict[str, Namespace]) -> None:
    mapped = bool(spec.linux.uid_mappings or spec.linux.gid_mappings)
    if "user" not in namespaces:
        if mapped:
            raise ConfigError("linux.uidMappings", "there is no user namespace to map ids in")
    elif namespaces["user"].path is None and not mapped:
        raise ConfigError("linux.uidMappings", "a new user namespace needs id mappings")


def _check_time_namespace(spec: Spec, namespaces: dict[str, Namespace]) -> None:
    if spec.linux.time_offsets is None:
        return
    if "time" not in namespaces:
        raise ConfigError("linux.timeOffsets", "there is no time namespace to set them in")
    if namespaces["time"].path is not None:
        raise ConfigError("linux.timeOffsets", "cannot be set in a time namespace that is joined by path")


def _check_net_devices(spec: Spec, namespaces: dict[str, Namespace]) -> None:
    devices = spec.linux.net_devices
    if not devices:
        return
    if "network" not in namespaces:
        raise ConfigError(
            "linux.netDevices", "cannot be moved without a network namespace of the container's own"
        )
    for name, device in devices.items():
        path = f"linux.netDevices[{name!r}]"
        if not _is_interface_name(name):
            raise ConfigError(path, "is not a name of a network device")
        if device.name is not None and not _is_interface_name(device.name):
            raise ConfigError(f"{path}.name", f"{device.name[:100]!r} is not a name of a network device")


def _is_interface_name(name: str) -> bool:
    # The kernel's rule: dev_valid_name in net/core/dev.c.
    if not 0 < len(name.encode()) <= INTERFACE_NAME_BYTES or name in (".", ".."):
        return False
    return not any(character in "/:" or character.isspace() for character in name)
