"""Device rules against real device nodes, on whatever this machine enforces them with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.cgroups.devices import PROGRAM_NAME
from runtime.cgroups.layout import make_layout
from runtime.linux import bpf
from runtime.spec.model import DeviceRule, Resources
from tests.e2e.cgroups.yard import Yard

KMSG = Path("/dev/kmsg")
DENY_ALL = DeviceRule(allow=False)
ALLOW_ALL = DeviceRule(allow=True)
ALLOW_KMSG = DeviceRule(allow=True, type="c", major=1, minor=11, access="r")

pytestmark = pytest.mark.skipif(not KMSG.exists(), reason="no /dev/kmsg to try with")


def opens(yard: Yard, cgroup: object, script: str = ": </dev/kmsg") -> bool:
    return yard.run(cgroup, "sh", "-c", script) == 0  # type: ignore[arg-type]


def test_device_outside_of_the_rules_is_refused(yard: Yard) -> None:
    cgroup = yard.make(devices=(DENY_ALL,))
    assert opens(yard, cgroup, ": </dev/null >/dev/zero </dev/urandom")
    assert not opens(yard, cgroup)


def test_no_rules_at_all_open_no_more_than_the_defaults(yard: Yard) -> None:
    assert not opens(yard, yard.make())


def test_allowed_access_is_allowed_and_no_other(yard: Yard) -> None:
    cgroup = yard.make(devices=(DENY_ALL, ALLOW_KMSG))
    assert opens(yard, cgroup)
    assert not opens(yard, cgroup, ": >/dev/kmsg")


def test_privileged_container_may_open_everything_but_what_is_denied_again(yard: Yard) -> None:
    assert opens(yard, yard.make(devices=(DENY_ALL, ALLOW_ALL)))
    denied = DeviceRule(allow=False, type="c", major=1, minor=11, access="w")
    cgroup = yard.make(devices=(ALLOW_ALL, denied))
    assert opens(yard, cgroup)
    assert not opens(yard, cgroup, ": >/dev/kmsg")


def test_making_a_node_needs_no_rule_but_opening_it_does(yard: Yard, tmp_path: Path) -> None:
    node = tmp_path / "kmsg"
    cgroup = yard.make(devices=(DENY_ALL,))
    assert yard.run(cgroup, "mknod", str(node), "c", "1", "11") == 0
    assert not opens(yard, cgroup, f": <{node}")


def test_update_replaces_the_rules_of_a_running_container(yard: Yard) -> None:
    cgroup = yard.make(devices=(DENY_ALL,))
    for rules, allowed in (((DENY_ALL, ALLOW_KMSG), True), ((DENY_ALL,), False), ((ALLOW_ALL,), True)):
        cgroup.apply(Resources(devices=rules))
        assert opens(yard, cgroup) == allowed
    cgroup.apply(Resources())
    assert opens(yard, cgroup)


def test_update_never_refuses_what_stays_allowed(yard: Yard) -> None:
    cgroup = yard.make(devices=(DENY_ALL,))
    pid = yard.spawn(cgroup, "sh", "-c", "while :; do : </dev/null || exit 3; done")
    for round_ in range(30):
        cgroup.apply(Resources(devices=(DENY_ALL, ALLOW_KMSG) if round_ % 2 else (DENY_ALL,)))
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)


def test_v2_has_one_program_of_ours_whatever_was_updated_and_keeps_others(yard: Yard) -> None:
    unified = yard.layout.unified
    if unified is None:
        pytest.skip("no cgroup v2 here")
    yard.layout = make_layout((unified,))  # a hybrid machine has programs, too
    cgroup = yard.make(devices=(DENY_ALL,))
    directory = os.open(cgroup.paths["unified"], os.O_RDONLY)
    try:
        allow_all = bytes([0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])
        with bpf.prog_load_cgroup_device(allow_all, "foreign") as foreign:
            bpf.prog_attach(directory, foreign.fileno(), bpf.BPF_CGROUP_DEVICE)
        for rules in ((DENY_ALL, ALLOW_KMSG), (ALLOW_ALL,), (DENY_ALL,)):
            cgroup.apply(Resources(devices=rules))
        assert sorted(_names(directory)) == ["foreign", PROGRAM_NAME]
    finally:
        os.close(directory)


def _names(directory: int) -> list[str]:
    names = []
    for number in bpf.prog_query(directory, bpf.BPF_CGROUP_DEVICE):
        with bpf.prog_get_fd_by_id(number) as program:
            names.append(bpf.prog_name(program.fileno()))
    return names


def test_refused_program_is_an_error_with_the_verifiers_words(yard: Yard) -> None:
    with pytest.raises(OSError, match="bpf: .*R0 !read_ok|bpf: .*processed"):
        bpf.prog_load_cgroup_device(bytes([0x95, 0, 0, 0, 0, 0, 0, 0]), "broken")
