"""Ids, groups, umask and capabilities: what is planned, and what a process then has."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from runtime.credentials import DEFAULT_UMASK, CapabilitySets, Credentials, become, plan_credentials
from runtime.errors import ConfigError
from runtime.linux import capability
from runtime.spec.model import Capabilities, Process, User
from tests.unit.runtime.forked import enter_user_namespace, in_child, needs_user_namespaces, status_of_self

CHOWN, KILL, NET_RAW = 1 << 0, 1 << 5, 1 << 13


def plan(**fields: Any) -> Credentials:
    return plan_credentials(Process(**fields), last_capability=40)


def test_names_and_numbers_are_those_of_this_kernels_header() -> None:
    assert capability.NUMBERS["CAP_SYS_ADMIN"] == 21
    assert capability.NUMBERS["CAP_CHECKPOINT_RESTORE"] == 40 == len(capability.NAMES) - 1


def test_the_last_capability_is_the_kernels() -> None:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as stream:
        assert capability.last_capability() == int(stream.read())
    assert capability.in_bounding_set(capability.last_capability() + 1) is None


def test_sets_become_masks() -> None:
    both = ("CAP_CHOWN", "CAP_KILL")
    got = plan(capabilities=Capabilities(both, ("CAP_KILL",), ("CAP_CHOWN",), both, ("CAP_CHOWN",)))
    assert got.capabilities == CapabilitySets(CHOWN | KILL, KILL, CHOWN | KILL, CHOWN, CHOWN)
    assert got.warnings == ()


def test_no_capabilities_object_leaves_them_alone() -> None:
    assert plan().capabilities is None


def test_inheritable_is_empty_unless_it_is_listed() -> None:
    got = plan(capabilities=Capabilities(("CAP_CHOWN",), ("CAP_CHOWN",), (), ("CAP_CHOWN",)))
    assert got.capabilities is not None
    assert (got.capabilities.inheritable, got.capabilities.ambient) == (0, 0)


@pytest.mark.parametrize("name", ["CAP_OF_TOMORROW", "cap_chown", "CHOWN", "CAP_CHECKPOINT_RESTORE"])
def test_a_capability_this_kernel_has_not_is_left_out_and_told_once(name: str) -> None:
    process = Process(capabilities=Capabilities((name, "CAP_CHOWN"), (name,), (), (name,), ()))
    got = plan_credentials(process, last_capability=39)
    assert got.capabilities == CapabilitySets(CHOWN, 0, 0, 0, 0)
    assert got.warnings == (f"ignoring unknown or unavailable capabilities: {name}",)


def test_ambient_is_raised_only_where_the_kernel_lets_it() -> None:
    names = ("CAP_CHOWN", "CAP_KILL")
    got = plan(capabilities=Capabilities(names, names, ("CAP_KILL",), names, names))
    assert got.capabilities is not None
    assert got.capabilities.ambient == KILL
    assert got.warnings == ("can't raise ambient capability CAP_CHOWN: not permitted and inheritable",)


def test_effective_beyond_permitted_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"process\.capabilities\.effective: CAP_KILL is not in permitted"):
        plan(capabilities=Capabilities((), ("CAP_KILL",), (), ()))


def test_inheritable_beyond_bounding_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"process\.capabilities\.inheritable: CAP_KILL is not in bounding"):
        plan(capabilities=Capabilities((), (), ("CAP_KILL",), ()))


def test_the_groups_are_those_that_are_listed_each_once() -> None:
    assert plan(user=User(1000, 1000, None, (50, 1000, 50))).groups == (50, 1000)
    assert plan(user=User(1000, 1000)).groups == ()


def test_groups_stay_where_setgroups_is_denied_and_that_is_told() -> None:
    process = Process(user=User(0, 0, None, (50,)))
    got = plan_credentials(process, setgroups_denied=True, last_capability=40)
    assert got.groups is None
    assert "additional groups are left out" in got.warnings[0]
    assert plan_credentials(Process(), setgroups_denied=True, last_capability=40).warnings == ()


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**31 * 5])
def test_a_number_that_is_no_id_never_reaches_setresuid(number: int) -> None:
    # 2**32-1 is -1 to the system call: "keep the uid you have", which is root's.
    for field, user in (
        ("uid", User(number, 0)),
        ("gid", User(0, number)),
        ("additionalGids", User(0, 0, None, (number,))),
    ):
        with pytest.raises(ConfigError, match=rf"process\.user\.{field}: {number} is not an id"):
            plan(user=user)


def test_the_largest_id_is_one() -> None:
    assert plan(user=User(2**32 - 2, 2**32 - 2)).uid == 2**32 - 2


@pytest.mark.parametrize(
    ("own", "containers", "umask"),
    [(None, None, DEFAULT_UMASK), (None, 0o077, 0o077), (0, 0o077, 0), (0, None, 0)],
)
def test_the_umask_is_the_process_own_else_its_containers(
    own: int | None, containers: int | None, umask: int
) -> None:
    process = Process(user=User(0, 0, own))
    assert plan_credentials(process, last_capability=40, container_umask=containers).umask == umask


@needs_user_namespaces
def test_become_sets_every_set_of_the_process() -> None:
    def work() -> list[str]:
        enter_user_namespace()
        sets = CapabilitySets(CHOWN | KILL | NET_RAW, CHOWN, CHOWN | KILL, KILL, KILL)
        become(Credentials(0, 0, None, 0o027, sets))
        status = status_of_self()
        return [status[key] for key in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb", "Umask")]

    masks = [int(text, 16) for text in in_child(work)[:5]]
    assert masks == [CHOWN | KILL | NET_RAW, CHOWN, CHOWN | KILL, KILL, KILL]
    assert in_child(work)[5] == "0027"


@needs_user_namespaces
def test_ambient_and_inheritable_of_before_do_not_stay() -> None:
    def work() -> list[str]:
        enter_user_namespace()
        capability.capset(-1 & 0x1FFFFFFFFFF, 0x1FFFFFFFFFF, KILL | CHOWN)
        capability.raise_ambient(5)
        capability.raise_ambient(0)
        become(Credentials(0, 0, None, 0, CapabilitySets(CHOWN | KILL, KILL, KILL, KILL, 0)))
        status = status_of_self()
        return [status["CapInh"], status["CapAmb"]]

    assert [int(text, 16) for text in in_child(work)] == [KILL, 0]


@needs_user_namespaces
def test_a_capability_the_runtime_lacks_is_named() -> None:
    def work() -> str:
        enter_user_namespace()
        effective, permitted, _ = capability.capget()
        capability.capset(effective & ~KILL, permitted & ~KILL, 0)
        try:
            become(Credentials(0, 0, None, 0, CapabilitySets(KILL, KILL, KILL, 0, 0)))
        except OSError as error:
            return f"{error.errno} {error.strerror}"
        return "no error"

    assert in_child(work) == f"{errno.EPERM} capset: not held by the runtime: CAP_KILL"


@needs_user_namespaces
def test_dropping_what_is_gone_already_takes_no_privilege_but_keeping_more_is_an_error() -> None:
    def work() -> list[str]:
        enter_user_namespace()
        become(Credentials(0, 0, None, 0, CapabilitySets(KILL, KILL, KILL, 0, 0)))
        become(Credentials(0, 0, None, 0, CapabilitySets(KILL, KILL, KILL, 0, 0)))
        try:
            become(Credentials(0, 0, None, 0, CapabilitySets(0, 0, 0, 0, 0)))
        except OSError as error:
            return [f"{error.filename}: {error.strerror}"]
        return ["no error"]

    assert in_child(work) == ["CAP_KILL: drop from the bounding set: Operation not permitted"]


@needs_user_namespaces
@pytest.mark.parametrize(("uid", "gid", "subject"), [(5, 0, "uid 5: setresuid"), (0, 6, "gid 6: setresgid")])
def test_an_id_that_is_not_mapped_is_named(uid: int, gid: int, subject: str) -> None:
    def work() -> str:
        enter_user_namespace()
        try:
            become(Credentials(uid, gid, None, 0, None))
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return "no error"

    assert in_child(work) == f"{subject}: not mapped in the user namespace"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another uid to take")
def test_another_user_keeps_exactly_what_is_asked_for() -> None:
    def work() -> dict[str, str]:
        become(Credentials(1000, 1001, (1001, 50), 0o022, CapabilitySets(KILL, KILL, KILL, 0, 0)))
        keep = os.strerror(0) if os.getresuid() == (1000,) * 3 else "wrong uid"
        status = status_of_self()
        return {key: status[key] for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapBnd")} | {
            "": keep
        }

    got = in_child(work)
    assert got["Uid"].split() == ["1000"] * 4
    assert got["Gid"].split() == ["1001"] * 4
    assert got["Groups"].split() == ["50", "1001"]
    assert {int(got[key], 16) for key in ("CapEff", "CapPrm", "CapBnd")} == {KILL}
