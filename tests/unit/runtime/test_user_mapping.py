"""Uid and gid maps: what is written, by whom, and what a rootless caller may not ask for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ConfigError
from runtime.linux import constants as c
from runtime.linux.process import set_dumpable, unshare
from runtime.record import replace
from runtime.spec.model import IdMapping, Linux, Mount, Namespace, NetDevice, Process, Root, Spec, User
from runtime.user_mapping import (
    Caller,
    MappingError,
    UserMapping,
    caller,
    check_rootless,
    find_tool,
    groups_are_denied,
    plan_mapping,
    write_by_tools,
    write_mapping,
)
from runtime.waiting import Sleep, run
from tests.unit.runtime.forked import needs_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.waiting import Operation

    RunTool = Callable[[tuple[str, ...]], Operation[str]]

WHOLE = (IdMapping(0, 100000, 65536),)


def test_maps_are_laid_out_as_the_kernel_reads_them() -> None:
    mapping = plan_mapping((IdMapping(0, 1000, 1), IdMapping(1, 5000, 10)), WHOLE)
    assert mapping == UserMapping("0 1000 1\n1 5000 10\n", "0 100000 65536\n")


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        ((), "a new user namespace needs it"),
        ((IdMapping(0, 0, 0),), "an empty range"),
        ((IdMapping(0, 5, 10), IdMapping(9, 100, 2)), "ranges overlap at containerID 9"),
        ((IdMapping(0, 5, 10), IdMapping(10, 14, 2)), "ranges overlap at hostID 14"),
        ((IdMapping(1, 1, 1),), "no mapping for id 0"),
        ((IdMapping(0, 2**32 - 2, 2),), "are no ids"),
        ((IdMapping(2**32 - 1, 0, 1),), "are no ids"),
        (tuple(IdMapping(number, number, 1) for number in range(341)), "the kernel takes 340"),
        (tuple(IdMapping(number, 4000000000 + number, 1) for number in range(340)), "the kernel takes 4095"),
    ],
)
def test_maps_the_kernel_would_refuse_name_the_field(mappings: tuple[IdMapping, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"linux\.uidMappings.*{message}"):
        plan_mapping(mappings, WHOLE)
    with pytest.raises(ConfigError, match=rf"linux\.gidMappings.*{message}"):
        plan_mapping(WHOLE, mappings)


def test_an_unprivileged_caller_writes_its_own_id_and_gives_up_setgroups() -> None:
    own = (IdMapping(0, 1000, 1),)
    mapping = plan_mapping(own, own, Caller(1000, 1000))
    assert (mapping.deny_setgroups, mapping.tools) == (True, ())


def test_more_than_its_own_id_takes_the_tools_which_leave_setgroups_alone() -> None:
    mapping = plan_mapping(WHOLE, WHOLE, Caller(1000, 1000))
    assert mapping.deny_setgroups is False
    assert mapping.tools == (("uid_map", "newuidmap"), ("gid_map", "newgidmap"))
    mapping = plan_mapping((IdMapping(0, 1000, 1),), WHOLE, Caller(1000, 1000))
    assert mapping.tools == (("gid_map", "newgidmap"),)


@pytest.fixture
def unmapped() -> Iterator[int]:
    """The pid of a process that sits in a new user namespace without maps."""
    ready, ready_writer = os.pipe()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        unshare(c.CLONE_NEWUSER)
        set_dumpable(True)
        os.write(ready_writer, b"1")
        os.read(reader, 1)
        os._exit(0)
    os.close(ready_writer)
    os.read(ready, 1)
    yield pid
    for fd in (ready, reader, writer):
        os.close(fd)
    os.waitpid(pid, 0)


@needs_user_namespaces
def test_maps_reach_the_kernel_and_setgroups_is_denied_before(unmapped: int) -> None:
    uid, gid = os.getuid(), os.getgid()
    mapping = plan_mapping((IdMapping(0, uid, 1),), (IdMapping(0, gid, 1),), Caller(uid, gid))
    write_mapping(unmapped, mapping)
    written = []
    for name in ("uid_map", "gid_map", "setgroups"):
        with open(f"/proc/{unmapped}/{name}", encoding="ascii") as stream:
            written.append(stream.read().split())
    assert written == [["0", str(uid), "1"], ["0", str(gid), "1"], ["deny"]]


@needs_user_namespaces
def test_a_map_the_kernel_refuses_names_its_file(unmapped: int) -> None:
    mapping = plan_mapping(
        ((IdMapping(0, os.getuid(), 1)),), (IdMapping(0, os.getgid(), 1),), Caller(os.getuid(), os.getgid())
    )
    write_mapping(unmapped, mapping)
    with pytest.raises(MappingError, match=rf"write .* to /proc/{unmapped}/uid_map: Operation not permitted"):
        write_mapping(unmapped, UserMapping(mapping.uid_map, mapping.gid_map))


def test_what_the_tools_write_is_not_written_here(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    for name in ("uid_map", "gid_map", "setgroups"):
        (tmp_path / "7" / name).touch()
    mapping = plan_mapping((IdMapping(0, 1000, 1),), WHOLE, Caller(1000, 1000))
    write_mapping(7, mapping, str(tmp_path))
    contents = [(tmp_path / "7" / name).read_text() for name in ("uid_map", "gid_map", "setgroups")]
    assert contents == ["0 1000 1\n", "", ""]


def answering(failure: str, seen: list[tuple[str, ...]]) -> RunTool:
    def run_tool(arguments: tuple[str, ...]) -> Operation[str]:
        seen.append(arguments)
        yield Sleep(0)
        return failure

    return run_tool


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A directory with both tools, as root would have installed them."""
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).touch(0o755)
    real = os.stat

    def stat_of_root(path: Any, **how: Any) -> os.stat_result:
        fields = list(real(path, **how))
        if str(path).startswith(str(tmp_path)):
            fields[4] = 0
        return os.stat_result(fields)

    monkeypatch.setattr(os, "stat", stat_of_root)
    return str(tmp_path)


def test_tools_get_pid_and_ranges_as_arguments(tools: str) -> None:
    seen: list[tuple[str, ...]] = []
    mapping = plan_mapping((IdMapping(0, 1000, 1), IdMapping(1, 5000, 10)), WHOLE, Caller(1000, 1000))
    run(write_by_tools(42, mapping, answering("", seen), ("/no/such", tools)))
    assert seen == [
        (f"{tools}/newuidmap", "42", "0", "1000", "1", "1", "5000", "10"),
        (f"{tools}/newgidmap", "42", "0", "100000", "65536"),
    ]


def test_a_tool_that_fails_is_quoted(tools: str) -> None:
    mapping = plan_mapping(WHOLE, WHOLE, Caller(1000, 1000))
    said = f"write uid_map of process 42: {tools}/newuidmap: exit status 1, output: not in /etc/subuid"
    with pytest.raises(MappingError, match=said):
        run(write_by_tools(42, mapping, answering("exit status 1, output: not in /etc/subuid", []), (tools,)))


def test_a_tool_that_is_not_there_is_named() -> None:
    mapping = plan_mapping((IdMapping(0, 1000, 1),), WHOLE, Caller(1000, 1000))
    with pytest.raises(MappingError, match="takes newgidmap, which is in none of /no/such /nor/this"):
        run(write_by_tools(42, mapping, answering("", []), ("/no/such", "/nor/this")))


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_tool_that_others_could_change_is_not_run(tools: str, mode: int) -> None:
    os.chmod(f"{tools}/newuidmap", mode)
    with pytest.raises(MappingError, match="takes newuidmap"):
        find_tool("newuidmap", (tools,))


def test_a_tool_that_is_somebody_elses_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "newuidmap").touch(0o755)
    if os.getuid() == 0:
        os.chown(tmp_path / "newuidmap", 1000, 1000)
    (tmp_path / "newgidmap").mkdir()
    for name in ("newuidmap", "newgidmap"):
        with pytest.raises(MappingError, match=f"takes {name}"):
            find_tool(name, (str(tmp_path),))


# ---- who is not root ---------------------------------------------------------------------------


def test_root_is_no_special_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, expected in ((0, None), (1000, Caller(1000, 100))):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        monkeypatch.setattr(os, "getegid", lambda: 100)
        assert caller() == expected


@pytest.mark.parametrize(("said", "denied"), [("allow\n", False), ("deny\n", True), (None, False)])
def test_groups_are_what_the_kernel_says_for_root_and_denied_to_others(
    tmp_path: Path, said: str | None, denied: bool
) -> None:
    file = tmp_path / "setgroups"
    if said is not None:
        file.write_text(said)
    assert groups_are_denied(None, str(file)) is denied
    assert groups_are_denied(Caller(1000, 1000), str(file)) is True


def rootless_spec(**changes: Any) -> Spec:
    linux = Linux(namespaces=(Namespace("mount"), Namespace("user")), uid_mappings=WHOLE, gid_mappings=WHOLE)
    spec = Spec("1.3.0", Process(), Root("rootfs"), linux=linux)
    return replace(spec, linux=replace(linux, **changes.pop("linux", {})), **changes)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"linux": {"namespaces": (Namespace("mount"),)}}, "linux.namespaces"),
        ({"linux": {"net_devices": {"eth0": NetDevice()}}}, "linux.netDevices"),
        ({"process": Process(user=User(additional_gids=(5,)))}, "process.user.additionalGids"),
        ({"mounts": (Mount("/a"), Mount("/b", uid_mappings=WHOLE))}, "mounts[1].uidMappings"),
        ({"mounts": (Mount("/a", options=("uid=65536",)),)}, "mounts[0].options"),
        ({"mounts": (Mount("/a", options=("mode=755", "gid=70000")),)}, "mounts[0].options"),
    ],
)
def test_what_only_root_could_do_is_refused_to_others(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as failure:
        check_rootless(rootless_spec(**changes))
    assert failure.value.path == path


def test_what_anybody_may_do_is_not() -> None:
    mounts = (Mount("/a", options=("uid=65535", "gid=0", "uid=x", "guid=70000")),)
    check_rootless(rootless_spec(mounts=mounts))
    joined = (Namespace("mount"), Namespace("user", "/proc/1/ns/user"))
    far = (Mount("/a", options=("uid=70000",)),)
    check_rootless(
        rootless_spec(linux={"namespaces": joined, "uid_mappings": (), "gid_mappings": ()}, mounts=far)
    )
