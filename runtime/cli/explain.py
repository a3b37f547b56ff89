"""explain: what `create` and `start` would do with a bundle, in order, and nothing of it done.

It prints the very plans that `create` makes and the stages carry out, step by step, under the names that `--fail-at`
knows; what only the doing can tell (where a symlink of the image leads) is not in them. A test compares it with
what the kernel is asked for. What can be refused before anything is made is refused here in the same words.
"""

from __future__ import annotations

import os

from runtime import rdt, seccomp
from runtime.bundle import read_config
from runtime.cli.arguments import Option, Verb
from runtime.cli.explain_cgroup import cgroup_details, limit_of_processes
from runtime.cli.explain_rootfs import device_details, mount_details, pivot_details, protection_details
from runtime.cli.host import host
from runtime.cli.output import indented, say
from runtime.errors import InvalidArgument
from runtime.linux import capability
from runtime.linux import constants as c
from runtime.namespaces import KINDS, plan_namespaces
from runtime.net_devices import plan_net_devices
from runtime.operations.container_plan import plan_terms, plan_time_offsets
from runtime.operations.process_plan import plan_limits, plan_process
from runtime.record import Record, replace
from runtime.rootfs.plan import plan_rootfs
from runtime.spec.load import load_spec
from runtime.spec.model import Hooks
from runtime.stages.landlord import choose_shape
from runtime.stages.plan import DIRECT, Stdio
from runtime.stages.stage1_namespaces import LATE_KINDS
from runtime.sysctls import plan_sysctls
from runtime.user_mapping import caller, plan_mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cli.arguments import Call
    from runtime.container import Host, Terms
    from runtime.limits import Limit
    from runtime.namespaces import Join, NamespacePlan
    from runtime.rootfs.plan import RootfsPlan
    from runtime.seccomp import Filter
    from runtime.spec.model import Hook, Spec
    from runtime.stages.plan import ProcessPlan

    Detail = dict[str, Any]

MAIN, INTER, INIT = "main", "inter", "init"


class Act(Record):
    """One step of a stage, by the name that it has there, and what it comes to: each detail reads as a sentence."""

    stage: str
    step: str
    details: tuple[Detail, ...] = ()


class Plans(Record):
    """All that is decided before anything is done."""

    host: Host
    id: str
    bundle: str
    spec: Spec
    namespaces: NamespacePlan
    shape: str
    terms: Terms
    process: ProcessPlan
    rootfs: RootfsPlan
    filter: Filter | None
    keyring: bool


def make_plans(
    machine: Host, container_id: str, bundle: str, spec: Spec, no_pivot: bool = False, keyring: bool = True
) -> Plans:
    """The plans that `create` would make; it raises what that would raise before it begins."""
    namespaces = plan_namespaces(spec.linux.namespaces)
    profile = spec.linux.seccomp
    compiled = None if profile is None else seccomp.compile_profile(profile)  # not cached: nothing is written
    bare = replace(spec, linux=replace(spec.linux, seccomp=None))
    terms = replace(plan_terms(machine, bare, namespaces), filter=compiled)
    process = plan_process(machine, spec.process, terms, Stdio(0, 1, 2))
    rootfs = plan_rootfs(spec, bundle, machine.layout.view(), no_pivot)
    return Plans(
        machine,
        container_id,
        bundle,
        spec,
        namespaces,
        choose_shape(namespaces),
        terms,
        process,
        rootfs,
        compiled,
        keyring,
    )


def acts_of(plans: Plans) -> list[Act]:
    """Every step of create and start, in order."""
    acts = [Act(MAIN, "make cgroup", tuple(cgroup_details(plans)))]
    acts.append(Act(MAIN, "clone", tuple(namespace_details(plans))))
    acts += _before_init(plans)
    if limit := limit_of_processes(plans):
        born = "clone" if plans.shape == DIRECT else "clone init"
        index = next(index for index, act in enumerate(acts) if act.step == born) + 1
        acts.insert(index, Act(MAIN, "limit processes", tuple(limit)))
    acts += _confined(plans)
    acts += _program(plans)
    return acts


# ---- namespaces --------------------------------------------------------------------------------


def _names(kinds: int) -> list[str]:
    return [name for name, (flag, _file) in KINDS.items() if kinds & flag]


def namespace_details(plans: Plans) -> list[Detail]:
    """Which namespaces are made, which are joined, and the maps of a new user namespace."""
    plan, linux = plans.namespaces, plans.spec.linux
    found: list[Detail] = [{"in the shape": plans.shape}]
    if plan.new:
        found.append({"new namespaces": _names(plan.new)})
    found += [{"join": join.name, "namespace at": join.path} for join in plan.joins]
    if plan.new & c.CLONE_NEWUSER:
        mapping = plan_mapping(linux.uid_mappings, linux.gid_mappings)
        found.append({"uid map": mapping.uid_map.splitlines(), "gid map": mapping.gid_map.splitlines()})
    limits = plan_limits(plans.spec.process)
    found += [_limit(each) for each in limits.rlimits]
    for name in ("oom_score_adj", "io_priority", "scheduler"):
        value = getattr(limits, name)
        if value is not None:
            found.append({"set": name, "to": value if isinstance(value, int) else repr(value)})
    return found


def _limit(limit: Limit) -> Detail:
    return {"set": limit.name, "soft": limit.soft, "hard": limit.hard}


def _joins(plans: Plans, kinds: int) -> list[Join]:
    return [join for join in plans.namespaces.joins if join.kind & kinds]


def _before_init(plans: Plans) -> list[Act]:
    """What stage 1 does, or in the direct shape init itself; the world of the container is made by either."""
    new = plans.namespaces.new
    entered = [Act(INIT, "join cgroup"), Act(INIT, "set cpu affinity", ({"to": "all possible CPUs"},))]
    others = ~(c.CLONE_NEWUSER | c.CLONE_NEWPID | LATE_KINDS)
    joined = [
        Act(INIT, f"join {join.name} namespace", ({"at": join.path},)) for join in _joins(plans, others)
    ]
    mapped = [Act(INIT, "map user namespace")] if new & c.CLONE_NEWUSER else []
    if mapped and new & c.CLONE_NEWTIME:
        mapped.insert(0, Act(INIT, "unshare time namespace"))
    if plans.shape == DIRECT:
        return [*mapped, *entered, *joined, *_world(plans)]
    user = [Act(INIT, "unshare user namespace"), *mapped] if mapped else []
    user += [
        Act(INIT, "join user namespace", ({"at": join.path},)) for join in _joins(plans, c.CLONE_NEWUSER)
    ]
    pid = [Act(INIT, "join pid namespace", ({"at": join.path},)) for join in _joins(plans, c.CLONE_NEWPID)]
    if new & c.CLONE_NEWPID:
        pid.append(Act(INIT, "unshare pid namespace"))
    left = new & ~(c.CLONE_NEWUSER | c.CLONE_NEWPID | LATE_KINDS)
    rest = [Act(INIT, "unshare namespaces", ({"new": _names(left)},))]
    own = [*entered, *(joined + user if mapped else user + joined)]
    clone = Act(INIT, "clone init")
    if plans.namespaces.pid_join is not None:
        # Born into the PID namespace of others, init must not bring the host along: the world is made before.
        last = (*pid, Act(INIT, "give up capabilities"), clone)
        terminal = [Act(INIT, "make terminal")] if plans.process.terminal else []
        made = (*own, *rest, *_world(plans), *_protection(plans), *terminal, *last)
        return [replace(act, stage=INTER) for act in made]
    return [*(replace(act, stage=INTER) for act in (*own, *pid, clone)), *rest, *_world(plans)]


# ---- init --------------------------------------------------------------------------------------


def _world(plans: Plans) -> list[Act]:
    """From bare namespaces to the container's own root."""
    spec, rootfs = plans.spec, plans.rootfs
    new = plans.namespaces.new
    acts = [
        Act(INIT, f"join {join.name} namespace", ({"at": join.path},)) for join in _joins(plans, LATE_KINDS)
    ]
    if new & c.CLONE_NEWCGROUP:
        acts.append(Act(INIT, "unshare cgroup namespace"))
    if new & c.CLONE_NEWTIME:
        offsets = plan_time_offsets(spec).splitlines()
        acts.append(Act(INIT, "make time namespace", ({"offsets": offsets},) if offsets else ()))
    if caller() is not None:
        acts.append(Act(INIT, "open own namespaces"))
    for name in ("hostname", "domainname"):
        value = getattr(spec, name)
        if value is not None:
            acts.append(Act(INIT, f"set {name}", ({"to": value},)))
    if new & c.CLONE_NEWNET:
        acts.append(Act(INIT, "bring up", ({"link": "lo"},)))
    mounts = (*mount_details(rootfs), *device_details(rootfs))
    acts.append(Act(INIT, "mount root file system", mounts))
    acts += _with_the_host(plans)
    acts.append(Act(INIT, "pivot into", pivot_details(rootfs)))
    return acts


def _confined(plans: Plans) -> list[Act]:
    """What init does in the root before there is a program."""
    acts = _protection(plans) if plans.namespaces.pid_join is None else []
    if plans.keyring:
        acts.append(Act(INIT, "make session keyring", ({"named": f"_ses.{plans.id}"},)))
    return acts


def _protection(plans: Plans) -> list[Act]:
    """The last of the container's world."""
    spec, rootfs = plans.spec, plans.rootfs
    acts = [Act(INIT, "make working directory", ({"": rootfs.cwd},))]
    sysctls = tuple({"write": each.value, "to": each.path} for each in plan_sysctls(spec))
    acts.append(Act(INIT, "write sysctls", sysctls))
    acts.append(Act(INIT, "mask and protect paths", protection_details(rootfs)))
    return acts


def _hooks(moment: str, listed: tuple[Hook, ...]) -> list[Detail]:
    return [
        {f"run {moment}": hook.path, "arguments": list(hook.args[1:]), "timeout": hook.timeout}
        for hook in listed
    ]


def _with_the_host(plans: Plans) -> list[Act]:
    """What main does while the mounts stand and the root is the host's, and the hooks of that moment."""
    spec = plans.spec
    asked: list[Detail] = []
    if spec.linux.intel_rdt is not None:
        asked.append({"join resctrl group": repr(rdt.plan_rdt(spec.linux.intel_rdt, plans.id))})
    devices = plan_net_devices(spec.linux.net_devices)
    asked += [{"move network device": each.name, "as": each.target} for each in devices]
    asked_hooks = spec.hooks or Hooks()
    asked += _hooks("prestart", asked_hooks.prestart) + _hooks("createRuntime", asked_hooks.create_runtime)
    acts = []
    if asked or asked_hooks.create_container:
        acts += [Act(INIT, "wait for host"), Act(MAIN, "attend to the host's part", tuple(asked))]
    if devices:
        acts.append(Act(INIT, "set up network devices"))
    if asked_hooks.create_container:
        details = tuple(_hooks("createContainer", asked_hooks.create_container))
        acts.append(Act(INIT, "run createContainer hooks", details))
    return acts


# ---- the program -------------------------------------------------------------------------------


def _program(plans: Plans) -> list[Act]:
    """From the standard descriptors to execve."""
    process, asked_hooks = plans.process, plans.spec.hooks or Hooks()
    terminal = ({"terminal of": "/dev/pts/ptmx"},) if process.terminal else ()
    acts = [Act(INIT, "set up stdio", terminal), Act(INIT, "wait for limits")]
    if process.personality is not None:
        acts.append(Act(INIT, "set personality", ({"to": process.personality},)))
    if process.memory_policy is not None:
        acts.append(Act(INIT, "set memory policy", ({"to": repr(process.memory_policy)},)))
    labels = {"AppArmor profile": process.apparmor_profile, "SELinux label": process.selinux_label}
    acts.append(
        Act(INIT, "set security label", tuple({key: value} for key, value in labels.items() if value))
    )
    acts.append(Act(INIT, "change to working directory", ({"": process.cwd},)))
    filtered = seccomp_details(plans)
    if filtered and not process.no_new_privileges:
        acts.append(Act(INIT, "load seccomp filter", filtered))
    acts.append(Act(INIT, "set credentials", credential_details(process)))
    if process.no_new_privileges:
        acts.append(Act(INIT, "set no_new_privs"))
        if plans.filter is not None and plans.filter.notify:
            acts.append(Act(INIT, "load seccomp filter", filtered))
    acts.append(Act(INIT, "look up", ({"": process.args[0]},)))
    acts.append(Act(MAIN, "save state", ({"in": f"{plans.host.root}/{plans.id}/state.json"},)))
    acts.append(Act(MAIN, "ask to start"))
    if asked_hooks.start_container:
        details = tuple(_hooks("startContainer", asked_hooks.start_container))
        acts.append(Act(INIT, "run startContainer hooks", details))
    last = filtered if process.no_new_privileges and not (plans.filter and plans.filter.notify) else ()
    execve = {"": list(process.args), "environment": list(process.env)}
    acts.append(Act(INIT, "execute", (*last, execve)))
    if asked_hooks.poststart:
        acts.append(Act(MAIN, "run poststart hooks", tuple(_hooks("poststart", asked_hooks.poststart))))
    return acts


def seccomp_details(plans: Plans) -> tuple[Detail, ...]:
    """The filter in one sentence."""
    profile = plans.spec.linux.seccomp
    if plans.filter is None or profile is None:
        return ()
    found: Detail = {
        "seccomp": profile.default_action,
        "but for system calls": sum(len(rule.names) for rule in profile.syscalls),
        "architectures": list(profile.architectures),
        "instructions": len(plans.filter.program) // 8,
        "unknown": list(seccomp.unknown_syscalls(profile)),
        "listener": profile.listener_path,
    }
    return (found,)


def credential_details(process: ProcessPlan) -> tuple[Detail, ...]:
    """Ids, groups, umask and the five sets of capabilities."""
    who = process.credentials
    found: list[Detail] = [{"uid": who.uid, "gid": who.gid, "umask": f"{who.umask:04o}"}]
    if who.groups is not None:
        found.append({"groups": list(who.groups)})
    sets = who.capabilities
    if sets is not None:
        found += [
            {f"{name} capabilities": capability.describe(getattr(sets, name)) or "none"}
            for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
        ]
    return (*found, *({"warning": text} for text in who.warnings))


# ---- the verb ----------------------------------------------------------------------------------


def as_text(acts: list[Act]) -> str:
    """The plan for people: a line a step, its details indented below."""
    lines = []
    for act in acts:
        lines.append(f"{act.stage:<6}{act.step}")
        lines += [f"          {words}" for detail in act.details if (words := sentence(detail))]
    return "\n".join(lines) + "\n"


def sentence(detail: Detail) -> str:
    """A detail as words: keys and values in their order; what is not set is not said."""
    words = []
    for key, value in detail.items():
        if value is None or value is False or value == []:
            continue
        shown = " ".join(_shown(each) for each in value) if isinstance(value, list) else _shown(value)
        words.append(key if value is True else f"{key} {shown}".strip())
    return " ".join(words)


def _shown(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and text else repr(text)


def as_json(plans: Plans, acts: list[Act]) -> Detail:
    """The plan for programs."""
    steps = [{"stage": act.stage, "step": act.step, "details": list(act.details)} for act in acts]
    return {"id": plans.id, "bundle": plans.bundle, "shape": plans.shape, "steps": steps}


def explain(call: Call) -> int:
    """Print the plan for the bundle."""
    options = call.options
    if options["format"] not in ("text", "json"):
        raise InvalidArgument(f"invalid format {options['format']!r}: it must be text or json")
    bundle = os.path.abspath(call.arguments[0] if call.arguments else options["bundle"] or ".")
    spec = load_spec(read_config(bundle))
    name = options["id"] or os.path.basename(bundle)
    plans = make_plans(
        host(call.globals), name, bundle, spec, options["no-pivot"], not options["no-new-keyring"]
    )
    acts = acts_of(plans)
    say(as_text(acts) if options["format"] == "text" else indented(as_json(plans, acts), "  ") + "\n")
    return 0


VERBS = {
    "explain": Verb(
        "explain",
        "[bundle]",
        "print what create would do with a bundle, in order, without doing it",
        (
            Option(("--bundle", "-b"), help="path to the root of the bundle directory"),
            Option(("--id",), help="the container's id, where it matters; the bundle's name otherwise"),
            Option(("--format", "-f"), default="text", help='"text" or "json"'),
            Option(("--no-pivot",), "flag", help="as with create"),
            Option(("--no-new-keyring",), "flag", help="as with create"),
        ),
        explain,
        most=1,
        about="The explain command prints the ordered plan for a bundle: cgroups, namespaces, mounts, credentials\n"
        "   and the program, step by step. Nothing is made, mounted or written.",
    )
}
