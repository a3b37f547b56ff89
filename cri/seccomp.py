"""The seccomp profile of a container that asks for the runtime's default: an allow-list, kept as data.

`default_seccomp.json` has every rule with what it depends on; here the ones that hold are picked. The data is
written for the kernel's numbers and for filters that see 64 bits of arguments of which the kernel takes 32.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


@cache
def _data() -> dict[str, Any]:
    text = resources.files("cri").joinpath("default_seccomp.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def default_profile(machine: str, capabilities: Iterable[str]) -> dict[str, Any]:
    """`linux.seccomp` of a config.json for a container with `capabilities` (bounding set) on `machine` (uname -m).

    On a machine that the data does not name, only its own architecture's calls are taken.
    """
    data, held = _data(), frozenset(capabilities)
    profile: dict[str, Any] = {
        "defaultAction": data["defaultAction"],
        "defaultErrnoRet": data["defaultErrnoRet"],
    }
    if machine in data["architectures"]:
        profile["architectures"] = list(data["architectures"][machine])
    profile["syscalls"] = [_rule(rule) for rule in data["syscalls"] if _applies(rule, machine, held)]
    return profile


def _applies(rule: dict[str, Any], machine: str, held: frozenset[str]) -> bool:
    if "machines" in rule and machine not in rule["machines"]:
        return False
    if "capabilities" in rule and held.isdisjoint(rule["capabilities"]):
        return False
    return held.isdisjoint(rule.get("unlessCapability", ()))


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    """A fresh copy of what config.json has of a rule: no container may change another's."""
    kept: dict[str, Any] = {"names": list(rule["names"]), "action": rule["action"]}
    if "errnoRet" in rule:
        kept["errnoRet"] = rule["errnoRet"]
    if "args" in rule:
        kept["args"] = [dict(argument) for argument in rule["args"]]
    return kept
