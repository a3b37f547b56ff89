"""From a spec to the terms of a container: what is decided once, for its init and for every tenant that comes later."""

from __future__ import annotations

from runtime import limits, seccomp
from runtime.affinity import ANNOTATION
from runtime.cgroups.resources import ignored_fields
from runtime.container import Terms
from runtime.linux import constants as c
from runtime.operations.lifecycle_hooks import hooks_to_keep
from runtime.spec.checks import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.container import Host
    from runtime.namespaces import NamespacePlan
    from runtime.spec.model import Spec


def plan_terms(host: Host, spec: Spec, namespaces: NamespacePlan) -> Terms:
    """What init and every tenant have in common; the seccomp filter is compiled here, once."""
    linux = spec.linux
    profile = linux.seccomp
    return Terms(
        namespaces=namespaces.kinds,
        init_is_first=bool(namespaces.new & c.CLONE_NEWPID),
        oci_version=spec.oci_version,
        annotations=spec.annotations,
        hooks=hooks_to_keep(spec),
        listener=None
        if profile is None or not profile.listener_path
        else (profile.listener_path, profile.listener_metadata or ""),
        filter=None if linux.seccomp is None else seccomp.cached(linux.seccomp, host.seccomp_cache),
        personality=None if linux.personality is None else limits.plan_personality(linux.personality)[0],
        memory_policy=None if linux.memory_policy is None else limits.plan_memory_policy(linux.memory_policy),
        umask=spec.process.user.umask,
        capabilities=spec.process.capabilities,
        cpuset=None if linux.resources.cpu is None else linux.resources.cpu.cpus,
        affinity=spec.process.exec_cpu_affinity,
        transition=(spec.annotations or {}).get(ANNOTATION),
    )


def untold(spec: Spec) -> tuple[str, ...]:
    """Warnings for what `spec` asks to no effect, as with runc: the kernel has none of it any more.

    And for what it says in a way that it should not.
    """
    personality = spec.linux.personality
    flags = () if personality is None else limits.plan_personality(personality)[1]
    relative = (
        f"mounts[{index}].destination: {named(mount.destination)} is taken as relative to /, which is deprecated"
        for index, mount in enumerate(spec.mounts)
        if not mount.destination.startswith("/")
    )
    return (*flags, *ignored_fields(spec.linux.resources), *relative)


def plan_time_offsets(spec: Spec) -> str:
    """The lines for /proc/PID/timens_offsets (time_namespaces(7)); "" for none."""
    offsets = spec.linux.time_offsets or {}
    return "".join(f"{clock} {offset.secs} {offset.nanosecs}\n" for clock, offset in offsets.items())


def monotonic_offset_ns(spec: Spec) -> int:
    """How far ahead the container's CLOCK_MONOTONIC will be."""
    offset = (spec.linux.time_offsets or {}).get("monotonic")
    return 0 if offset is None else offset.secs * 1_000_000_000 + offset.nanosecs
