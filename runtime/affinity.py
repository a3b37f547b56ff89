"""On which CPUs a tenant's process begins, joins its cgroup and goes on: decided here from plain values.

Three things have a say: `execCPUAffinity` of the process, the annotation for nodes with isolated CPUs,
and a kernel that since 6.2 keeps a caller's own affinity through a change of cpuset. The decision is
`plan_tenant`; the stages carry it out with `runtime.linux.sched`. Cpusets are `runtime/cgroups`' business.
"""

from __future__ import annotations

import os

from runtime.errors import ConfigError, InvalidArgument, ManorError
from runtime.linux.sched import MAX_CPUS
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import ExecCpuAffinity

ANNOTATION = "org.opencontainers.runc.exec.isolated-cpu-affinity-transition"
TEMPORARY = "temporary"
DEFINITIVE = "definitive"


class AffinityPlan(Record):
    """What is set when; None is nothing.

    `before_join` holds from the clone until the process is in its cgroup, `after_join` from then on;
    `reset` instead of the latter means all possible CPUs.
    """

    before_join: tuple[int, ...] | None = None
    after_join: tuple[int, ...] | None = None
    reset: bool = True
    warnings: tuple[str, ...] = ()


# A container's init: what the shim happens to be confined to must not stick to it.
LANDLORD = AffinityPlan()


def plan_tenant(
    annotation: str | None, isolated: tuple[int, ...], cpuset: str | None, affinity: ExecCpuAffinity | None
) -> AffinityPlan:
    """The plan for an exec. Pure.

    `annotation` is ANNOTATION's value, if there is one; `isolated` what `isolated_cpus` returned (it need
    not be asked without an annotation); `cpuset` the list the container's own cpuset is configured with,
    None or "" without one; `affinity` is `process.execCPUAffinity`.
    InvalidArgument for an unknown annotation value, ConfigError for a bad list in `affinity` or `cpuset`.
    """
    if annotation not in (None, "", TEMPORARY, DEFINITIVE):
        raise InvalidArgument(f"unknown transition value {annotation!r} for annotation {ANNOTATION}")
    initial = _parse_list("process.execCPUAffinity.initial", affinity.initial if affinity else None)
    final = _parse_list("process.execCPUAffinity.final", affinity.final if affinity else None)
    own = _parse_list("linux.resources.cpu.cpus", cpuset) if annotation else None
    start_on = eligible_cpu(own, isolated) if own else None
    warnings: tuple[str, ...] = ()
    if initial and start_on is not None:
        warnings = (f"annotation {ANNOTATION} has no effect: execCPUAffinity.initial is given",)
        start_on = None
    before = initial if start_on is None else (start_on,)
    # The specification: with `initial` alone the process keeps it. So it does after a definitive transition.
    stays = initial is not None or (start_on is not None and annotation == DEFINITIVE)
    return AffinityPlan(before, final, final is None and not stays, warnings)


def _parse_list(path: str, text: str | None) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        cpus = parse_cpu_list(text)
    except ValueError as error:
        raise ConfigError(path, str(error)) from error
    if not cpus:
        raise ConfigError(path, f"no CPU in {text!r}")
    return cpus


def eligible_cpu(cpuset: tuple[int, ...], isolated: tuple[int, ...]) -> int | None:
    """The CPU to be on when joining a cpuset that holds isolated CPUs; None if it holds none of them.

    Since Linux 5.7 the kernel spreads processes that join over the whole cpuset: on an isolated CPU a
    real-time thread may never let them run. So: the first housekeeping CPU of the cpuset, or where all
    of it is isolated its first CPU, which such applications keep for their slow work.
    """
    kept_apart = set(isolated)
    housekeeping = [cpu for cpu in cpuset if cpu not in kept_apart]
    if len(housekeeping) == len(cpuset):
        return None
    return housekeeping[0] if housekeeping else cpuset[0]


# ---- lists of CPUs -----------------------------------------------------------------------------


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The CPUs of a list such as "0-3,7", in order and once each; () for an empty list.

    As the kernel and the OCI runtimes read it: spaces round an element and empty elements are allowed, and
    a range may name a pattern, "0-31:2/8" being the first 2 of each 8. ValueError quotes the element
    that is wrong; a CPU above 8191 exists on no kernel.
    """
    cpus: set[int] = set()
    for element in text.split(","):
        stripped = element.strip()
        if stripped:
            cpus.update(_parse_element(stripped))
    return tuple(sorted(cpus))


def _parse_element(element: str) -> list[int]:
    span, has_pattern, pattern = element.partition(":")
    first_text, is_range, last_text = span.partition("-")
    first = _parse_number(first_text, element)
    last = _parse_number(last_text, element) if is_range else first
    if first > last:
        raise ValueError(f"bad range {element!r} in a list of CPUs: its end is before its start")
    if not has_pattern:
        return list(range(first, last + 1))
    used_text, has_group, group_text = pattern.partition("/")
    used, group = _parse_number(used_text, element), _parse_number(group_text, element)
    if not (is_range and has_group and 0 < used <= group):
        raise ValueError(f"bad pattern {element!r} in a list of CPUs")
    return [cpu for cpu in range(first, last + 1) if (cpu - first) % group < used]


def _parse_number(text: str, element: str) -> int:
    # isdigit alone would take "²" and Arabic digits, int() spaces, signs and underscores.
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"bad element {element[:80]!r} in a list of CPUs")
    number = int(text)
    if number >= MAX_CPUS:
        raise ValueError(f"CPU {number} in a list of CPUs: there are none above {MAX_CPUS - 1}")
    return number


def format_cpu_list(cpus: tuple[int, ...]) -> str:
    """The list in the kernel's short form: (0, 1, 2, 7) is "0-2,7"."""
    spans: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if spans and spans[-1][1] == cpu - 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


# ---- what the kernel says and does -------------------------------------------------------------


def isolated_cpus(
    cmdline: str = "/proc/cmdline", sysfs: str = "/sys/devices/system/cpu/nohz_full"
) -> tuple[int, ...]:
    """The CPUs the kernel keeps apart: `nohz_full=` of its command line, else what sysfs has; () for none.

    Both are read in the shim's own mount namespace. Sysfs covers kernels with all but one CPU isolated
    by their configuration; it says "(null)" for none. A file that cannot be read says nothing.
    ManorError for a list that is none.
    """
    source, text = cmdline, _boot_parameter("nohz_full", _read(cmdline))
    if not text:
        source, text = sysfs, _read(sysfs).strip()
    if text in ("", "(null)"):
        return ()
    try:
        return parse_cpu_list(_with_last_cpu(text))
    except ValueError as error:
        raise ManorError(f"isolated CPUs from {source}: {error}") from error


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 64 * 1024).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _boot_parameter(name: str, cmdline: str) -> str:
    for word in cmdline.split():
        key, _, value = word.partition("=")
        if key == name:
            return value
    return ""


def _with_last_cpu(text: str) -> str:
    """Spell out what the kernel's parser allows beside numbers: "all", and N for the last CPU."""
    if "N" not in text and "all" not in text:
        return text
    last = str((os.sysconf("SC_NPROCESSORS_CONF") or 1) - 1)
    return text.replace("all", f"0-{last}").replace("N", last)
