"""A container's terms as JSON: for state.json, and from the process that made it to the one that keeps it."""

from __future__ import annotations

from runtime.container import Terms
from runtime.limits import MemoryPlan
from runtime.linux.seccomp import Filter
from runtime.record import as_dict
from runtime.spec.model import Capabilities, ExecCpuAffinity, Hook, Hooks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def to_json(terms: Terms) -> dict[str, Any]:
    """What `from_json` takes."""
    compiled, memory, affinity = terms.filter, terms.memory_policy, terms.affinity
    said = as_dict(terms)
    said["filter"] = None if compiled is None else [compiled.program.hex(), compiled.flags, compiled.notify]
    said["memory_policy"] = None if memory is None else [memory.mode, memory.nodes.hex()]
    said["capabilities"] = None if terms.capabilities is None else as_dict(terms.capabilities)
    said["affinity"] = None if affinity is None else [affinity.initial, affinity.final]
    said["hooks"] = None if terms.hooks is None else _hooks_to_json(terms.hooks)
    return said


def from_json(said: dict[str, Any]) -> Terms:
    """The terms that `to_json` wrote. KeyError, TypeError or ValueError for what it did not.

    An earlier version may have had fewer of them. Of a later one's, those that say nothing (null, false, empty) are
    left out; any other is a ValueError: an exec that does without it may be less confined than its container.
    """
    unknown = [name for name, term in said.items() if name not in Terms.FIELD_NAMES and term]
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: of a newer Manor")
    said = {name: term for name, term in said.items() if name in Terms.FIELD_NAMES}
    if said.get("filter") is not None:
        program, flags, notify = said["filter"]
        said["filter"] = Filter(bytes.fromhex(program), flags, notify)
    if said.get("memory_policy") is not None:
        mode, nodes = said["memory_policy"]
        said["memory_policy"] = MemoryPlan(mode, bytes.fromhex(nodes))
    if said.get("capabilities") is not None:
        said["capabilities"] = Capabilities(**_tuples(said["capabilities"]))
    if said.get("affinity") is not None:
        said["affinity"] = ExecCpuAffinity(*said["affinity"])
    if said.get("hooks") is not None:
        said["hooks"] = _hooks_from_json(said["hooks"])
    for pair in ("listener", "rdt"):
        if said.get(pair) is not None:
            first, second = said[pair]
            said[pair] = (first, second)
    return Terms(**said)


def _tuples(lists: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in lists.items()}


def _hooks_to_json(hooks: Hooks) -> dict[str, list[dict[str, Any]]]:
    return {moment: [as_dict(hook) for hook in listed] for moment, listed in as_dict(hooks).items()}


def _hooks_from_json(said: dict[str, list[dict[str, Any]]]) -> Hooks:
    return Hooks(**{moment: tuple([_hook(each) for each in listed]) for moment, listed in said.items()})


def _hook(said: dict[str, Any]) -> Hook:
    return Hook(said["path"], tuple(said["args"]), tuple(said["env"]), said["timeout"])
