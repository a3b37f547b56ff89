from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime.errors import ConfigError
from runtime.linux import constants as c
from runtime.linux.process import set_dumpable, unshare
from runtime.spec.model import IdMapping
from runtime.user_mapping import (
    Caller,
    MappingError,
    UserMapping,
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

    RunProgram = Callable[[tuple[str, ...]], Operation[tuple[int, str]]]

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


def answering(code: int, output: str, seen: list[tuple[str, ...]]) -> RunProgram:
    def run_program(arguments: tuple[str, ...]) -> Operation[tuple[int, str]]:
        seen.append(arguments)
        yield Sleep(0)
        return code, output

    return run_program


def test_tools_get_pid_and_ranges_as_arguments() -> None:
    seen: list[tuple[str, ...]] = []
    mapping = plan_mapping((IdMapping(0, 1000, 1), IdMapping(1, 5000, 10)), WHOLE, Caller(1000, 1000))
    run(write_by_tools(42, mapping, answering(0, "", seen)))
    assert seen == [
        ("newuidmap", "42", "0", "1000", "1", "1", "5000", "10"),
        ("newgidmap", "42", "0", "100000", "65536"),
    ]


def test_a_tool_that_fails_is_quoted() -> None:
    mapping = plan_mapping(WHOLE, WHOLE, Caller(1000, 1000))
    with pytest.raises(
        MappingError, match="uid_map of process 42: newuidmap failed with 1: not in /etc/subuid"
    ):
        run(write_by_tools(42, mapping, answering(1, "not in /etc/subuid\n", [])))
