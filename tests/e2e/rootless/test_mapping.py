"""Id maps of a user without privileges: by newuidmap and newgidmap, as /etc/subuid and /etc/subgid allow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runtime import hooks
from runtime.linux import constants as c
from runtime.linux.process import set_dumpable, unshare
from runtime.spec.model import IdMapping
from runtime.user_mapping import Caller, MappingError, plan_mapping, write_by_tools, write_mapping
from runtime.waiting import run
from tests.e2e.rootless.conftest import COUNT, GID, SUBGID, SUBUID, UID, Account
from tests.unit.runtime.test_hooks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.waiting import Operation


def run_tool(arguments: tuple[str, ...]) -> Operation[str]:
    return hooks.run_tool(arguments, spawn, 30)


def mapped(uids: tuple[IdMapping, ...], gids: tuple[IdMapping, ...]) -> Callable[[], dict[str, Any]]:
    """For the user: a process in a new user namespace, mapped; its maps as the kernel shows them, or what failed."""

    def work() -> dict[str, Any]:
        ready, gone = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gone[1])
            set_dumpable(False)
            unshare(c.CLONE_NEWUSER)
            set_dumpable(True)  # as the stages do it: else the maps are root's to write
            os.write(ready[1], b"1")
            os.read(gone[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        mapping = plan_mapping(uids, gids, Caller(UID, GID))
        found: dict[str, Any] = {}
        try:
            write_mapping(pid, mapping)
            run(write_by_tools(pid, mapping, run_tool))
        except MappingError as error:
            found["error"] = str(error)
        for name in ("uid_map", "gid_map", "setgroups"):
            with open(f"/proc/{pid}/{name}", encoding="ascii") as stream:
                found[name] = [line.split() for line in stream]
        os.write(gone[1], b"1")
        os.waitpid(pid, 0)
        return found

    return work


def shown(mappings: tuple[IdMapping, ...]) -> list[list[str]]:
    return [[str(each.container_id), str(each.host_id), str(each.size)] for each in mappings]


OWN_UID, OWN_GID = (IdMapping(0, UID, 1),), (IdMapping(0, GID, 1),)
UIDS = (*OWN_UID, IdMapping(1, SUBUID, COUNT))
GIDS = (*OWN_GID, IdMapping(1, SUBGID, COUNT))


def test_a_user_may_map_itself_without_anybodys_help(account: Account) -> None:
    assert account.run(mapped(OWN_UID, OWN_GID)) == {
        "uid_map": shown(OWN_UID),
        "gid_map": shown(OWN_GID),
        "setgroups": [["deny"]],
    }


def test_the_users_ranges_are_mapped_by_the_tools_and_groups_can_be_set(account: Account) -> None:
    assert account.run(mapped(UIDS, GIDS)) == {
        "uid_map": shown(UIDS),
        "gid_map": shown(GIDS),
        "setgroups": [["allow"]],
    }


def test_each_map_goes_its_own_way(account: Account) -> None:
    found = account.run(mapped(OWN_UID, GIDS))
    assert [found["uid_map"], found["gid_map"], found["setgroups"]] == [
        shown(OWN_UID),
        shown(GIDS),
        [["allow"]],
    ]
    found = account.run(mapped(UIDS, OWN_GID))
    assert [found["uid_map"], found["gid_map"], found["setgroups"]] == [
        shown(UIDS),
        shown(OWN_GID),
        [["deny"]],
    ]


def test_a_range_that_is_not_the_users_is_refused_with_the_tools_words(account: Account) -> None:
    account.give("", "")
    found = account.run(mapped(UIDS, GIDS))
    assert found["error"].startswith("write uid_map of process ")
    assert "/newuidmap: exit status 1, output: newuidmap: uid range [1-65537) -> [700000-" in found["error"]
    assert found["uid_map"] == []
    account.give(f"{UID}:{SUBUID}:{COUNT}\n", "")
    assert "/newgidmap: exit status 1" in account.run(mapped(UIDS, GIDS))["error"]
