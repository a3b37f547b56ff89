"""The systemd driver and its bus against a manager that answers as told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups import bus
from runtime.cgroups.bus import BusError, session_path, session_sockets, system_sockets
from runtime.cgroups.cgroup import Cgroup, create_cgroup, reopen
from runtime.cgroups.layout import Hierarchy, Layout, make_layout
from runtime.cgroups.systemd import Placeholder, Systemd, unit_object
from runtime.errors import CgroupError, ConfigError, InvalidState
from runtime.spec.model import Pids, Resources
from runtime.waiting import run
from tests.unit.runtime.cgroups.fake_systemd import Answer, FakeSystemd, Refusal

PATH = "a.slice:p:c"
UNIT = "p-c.scope"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeSystemd]:
    served = FakeSystemd(tmp_path / "bus")
    yield served
    served.close()


@pytest.fixture
def placeholders() -> Iterator[list[int]]:
    spawned: list[int] = []
    yield spawned
    for pid in spawned:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


@pytest.fixture
def manager(fake: FakeSystemd, placeholders: list[int]) -> Systemd:
    def spawn() -> tuple[int, int]:
        pid = os.fork()
        if not pid:
            signal.pause()
            os._exit(0)
        placeholders.append(pid)
        return pid, os.pidfd_open(pid)

    return Systemd(spawn, sockets=(fake.path,))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # the fake's own


def unified(tmp_path: Path) -> Layout:
    (tmp_path / "v2").mkdir()
    hierarchy = Hierarchy(name="unified", controllers=("pids",), mountpoint=f"{tmp_path}/v2", version=2)
    return make_layout((hierarchy,))


# ---- the bus -----------------------------------------------------------------------------------


def test_a_property_is_asked_for(manager: Systemd) -> None:
    assert run(manager.properties(UNIT, ["Version"])) == {"Version": "252.38-1~deb12u1"}


@pytest.mark.parametrize("lines", [(b"DATA", b"OK 1234"), (b"OK 1234", b"OK 1234")])
def test_both_ways_of_authentication_do(
    fake: FakeSystemd, manager: Systemd, lines: tuple[bytes, ...]
) -> None:
    fake.authentication = lines
    run(manager.properties(UNIT, ["Version"]))


@pytest.mark.parametrize("lines", [(b"REJECTED EXTERNAL",), (b"DATA", b"REJECTED"), (b"ERROR", b"OK 1")])
def test_a_refused_authentication_is_told(
    fake: FakeSystemd, manager: Systemd, lines: tuple[bytes, ...]
) -> None:
    fake.authentication = lines
    with pytest.raises(CgroupError, match=r"authentication refused: (REJECTED|ERROR)"):
        run(manager.properties(UNIT, ["Version"]))


def test_the_second_socket_is_taken_where_there_is_no_bus(fake: FakeSystemd, tmp_path: Path) -> None:
    second = Systemd(sockets=(f"{tmp_path}/nobody", fake.path))
    run(second.stop(UNIT))
    with pytest.raises(CgroupError, match=r"nobody: No such file or directory; .*none: No such"):
        run(Systemd(sockets=(f"{tmp_path}/nobody", f"{tmp_path}/none")).stop(UNIT))


def test_a_manager_without_a_bus_is_not_greeted(tmp_path: Path) -> None:
    (tmp_path / "systemd").mkdir()
    private = FakeSystemd(tmp_path / "systemd/private")
    run(Systemd(sockets=(private.path,)).stop(UNIT))
    private.close()
    assert [name for name, _body in private.calls] == ["Subscribe", "StopUnit", "ResetFailedUnit"]


def test_an_error_reply_has_its_name_and_text(fake: FakeSystemd, manager: Systemd) -> None:
    def refuse(*_arguments: object) -> tuple[str, tuple[()]]:
        raise Refusal("org.example.No")

    fake.answers["AttachProcessesToUnit"] = refuse
    with pytest.raises(BusError, match="AttachProcessesToUnit: it said no") as failure:
        run(manager.attach(UNIT, "below", [1]))
    assert failure.value.name == "org.example.No"
    assert fake.calls[-1] == ("AttachProcessesToUnit", (UNIT, "/below", [1]))


def test_silence_ends_in_time(fake: FakeSystemd, manager: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "TIMEOUT_S", 0.1)
    fake.authentication = ()
    with pytest.raises(CgroupError, match=r"no answer within 0\.1 s"):
        run(manager.stop(UNIT))


@pytest.mark.parametrize("garbage", [b"x" * 64, b"l" * 64, b"l\2\0\1" + b"\0" * 8 + b"\x08" + b"\0" * 99])
def test_what_is_no_dbus_is_an_error(
    fake: FakeSystemd, manager: Systemd, monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    monkeypatch.setattr(bus, "TIMEOUT_S", 0.1)
    fake.authentication = (b"DATA", b"OK 1234", garbage)
    with pytest.raises(CgroupError):
        run(manager.stop(UNIT))


def test_a_closed_connection_is_an_error(fake: FakeSystemd, manager: Systemd) -> None:
    def close() -> tuple[str, tuple[()]]:
        raise OSError("gone")

    fake.answers["Subscribe"] = close
    with pytest.raises(CgroupError, match="connection was closed"):
        run(manager.stop(UNIT))


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:path=/run/user/1000/bus", "/run/user/1000/bus"),
        ("unix:path=/run/a%20b,guid=12;unix:path=/other", "/run/a b"),
        ("tcp:host=x;unix:abstract=/tmp/x", "\0/tmp/x"),
        ("", None),
        ("unixexec:path=/bin/x", None),
    ],
)
def test_session_address(address: str, path: str | None) -> None:
    assert session_path(address) == path


def test_sockets_of_a_user_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert session_sockets() == ("/run/user/7/bus", "/run/user/7/systemd/private")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/7/bus")
    assert session_sockets() == ("/run/user/7/bus", "/run/user/7/systemd/private")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(CgroupError, match="XDG_RUNTIME_DIR"):
        session_sockets()


def test_only_root_speaks_to_the_manager_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert system_sockets() == ("/run/dbus/system_bus_socket",)


# ---- units -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signals_first", [True, False])
def test_stop_waits_for_its_own_job_and_forgets_the_unit(
    fake: FakeSystemd, manager: Systemd, signals_first: bool
) -> None:
    fake.signals_first = signals_first
    run(manager.stop(UNIT))
    assert fake.members() == ["StopUnit", "ResetFailedUnit"]


def test_stop_of_a_unit_that_is_gone_succeeds(fake: FakeSystemd, manager: Systemd) -> None:
    def refuse(*_arguments: object) -> tuple[str, tuple[()]]:
        raise Refusal("org.freedesktop.systemd1.NoSuchUnit")

    fake.answers["StopUnit"] = fake.answers["ResetFailedUnit"] = refuse
    run(manager.stop(UNIT))


def test_a_failed_create_ends_the_placeholder_and_stops_the_unit(
    fake: FakeSystemd, manager: Systemd, placeholders: list[int], tmp_path: Path
) -> None:
    # The directory that systemd speaks of has no files to write limits to.
    layout = unified(tmp_path)
    with pytest.raises((CgroupError, OSError)):
        create_cgroup(layout, PATH, Resources(), "c", systemd=manager)
    assert fake.members() == ["StartTransientUnit", "StopUnit", "ResetFailedUnit"]
    assert len(placeholders) == 1
    assert os.listdir(tmp_path / "v2") == []


def test_the_placeholder_is_the_scopes_first_process(
    fake: FakeSystemd, manager: Systemd, placeholders: list[int], tmp_path: Path
) -> None:
    with pytest.raises((CgroupError, OSError)):
        create_cgroup(unified(tmp_path), PATH, Resources(), "c", systemd=manager)
    name, mode, properties, auxiliary = dict(fake.calls)["StartTransientUnit"]
    assert (name, mode, auxiliary) == (UNIT, "replace", [])
    assert dict(properties)["PIDs"] == ("au", placeholders)
    assert dict(properties)["Slice"] == ("s", "a.slice")


def test_a_unit_that_exists_is_left_to_its_owner(
    fake: FakeSystemd, manager: Systemd, placeholders: list[int], tmp_path: Path
) -> None:
    def refuse(*_arguments: object) -> tuple[str, tuple[()]]:
        raise Refusal("org.freedesktop.systemd1.UnitExists")

    fake.answers["StartTransientUnit"] = refuse
    with pytest.raises(BusError):
        create_cgroup(unified(tmp_path), PATH, Resources(), "c", systemd=manager)
    # One that failed is collected, and it is tried once more.
    assert fake.members() == ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]


def test_a_job_that_failed_is_told(
    fake: FakeSystemd, manager: Systemd, placeholders: list[int], tmp_path: Path
) -> None:
    fake.job_result = "timeout"
    with pytest.raises(CgroupError, match="job ended with 'timeout'"):
        create_cgroup(unified(tmp_path), PATH, Resources(), "c", systemd=manager)
    assert "StopUnit" in fake.members()


def test_a_property_that_systemd_refuses_is_the_configs_fault(
    fake: FakeSystemd, manager: Systemd, placeholders: list[int], tmp_path: Path
) -> None:
    def refuse(*_arguments: object) -> tuple[str, tuple[()]]:
        raise Refusal("org.freedesktop.DBus.Error.InvalidArgs")

    fake.answers["StartTransientUnit"] = refuse
    with pytest.raises(ConfigError, match=r"p-c\.scope"):
        create_cgroup(unified(tmp_path), PATH, Resources(), "c", systemd=manager)


def test_nothing_is_asked_for_a_path_of_the_other_driver(
    fake: FakeSystemd, manager: Systemd, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="slice:prefix:name"):
        create_cgroup(unified(tmp_path), "/a/c", Resources(), "c", systemd=manager)
    assert fake.calls == []


def test_a_group_outside_of_what_is_mounted_is_an_error(
    fake: FakeSystemd, manager: Systemd, placeholders: list[int], tmp_path: Path
) -> None:
    fake.properties["ControlGroup"] = ("s", "/../../etc")
    with pytest.raises(CgroupError, match="no cgroup that can be seen"):
        create_cgroup(unified(tmp_path), PATH, Resources(), "c", systemd=manager)


def test_delete_leaves_a_unit_that_has_processes(fake: FakeSystemd, manager: Systemd, tmp_path: Path) -> None:
    layout = unified(tmp_path)
    (tmp_path / "v2/c").mkdir()
    procs = tmp_path / "v2/c/cgroup.procs"
    procs.write_text("1\n")
    cgroup = Cgroup(layout, "c", UNIT, manager)
    assert not cgroup.try_delete()
    assert fake.calls == []
    procs.unlink()
    (tmp_path / "v2/c").rmdir()
    assert cgroup.try_delete()
    assert fake.members() == ["StopUnit", "ResetFailedUnit"]


def test_an_update_that_fails_is_taken_back_in_both(
    fake: FakeSystemd, manager: Systemd, tmp_path: Path
) -> None:
    layout = unified(tmp_path)
    (tmp_path / "v2/c").mkdir()
    (tmp_path / "v2/c/cgroup.controllers").write_text("pids\n")
    limit = tmp_path / "v2/c/pids.max"
    limit.write_text("40\n")
    told: list[int] = []

    def set_properties(_unit: str, _now: bool, properties: list[tuple[str, tuple[str, int]]]) -> Answer:
        told.extend(value for name, (_kind, value) in properties if name == "TasksMax")
        limit.write_text(f"{told[-1]}\n")
        return "", ()

    fake.answers["SetUnitProperties"] = set_properties
    asked = Resources(pids=Pids(limit=90), unified={"pids.no_such_file": "1"})
    with pytest.raises(CgroupError, match="no such file"):
        Cgroup(layout, "c", UNIT, manager).apply(asked)
    assert told == [90, 40]
    assert limit.read_text() == "40\n"


def test_what_a_crash_left_can_be_named(fake: FakeSystemd, manager: Systemd, tmp_path: Path) -> None:
    expected = manager.expected(unified(tmp_path), "a-b.slice:p:c")
    assert (expected.unit, expected.path) == (UNIT, "a.slice/a-b.slice/p-c.scope")
    assert fake.calls == []
    assert expected.try_delete()
    assert fake.members() == ["StopUnit", "ResetFailedUnit"]


def test_delete_works_without_systemd(tmp_path: Path) -> None:
    layout = unified(tmp_path)
    assert Cgroup(layout, "c", UNIT, Systemd(sockets=(f"{tmp_path}/nobody",))).try_delete()


def test_a_placeholder_is_ended_once_and_reaped() -> None:
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    placeholder = Placeholder(pid, os.pidfd_open(pid))
    placeholder.end()
    placeholder.end()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_what_a_cgroup_says_of_itself_opens_it_again(tmp_path: Path, manager: Systemd) -> None:
    layout = unified(tmp_path)
    said = Cgroup(layout, "a.slice/p-c.scope", UNIT).describe()
    assert said == {
        "driver": "systemd",
        "path": "a.slice/p-c.scope",
        "unit": UNIT,
        "paths": {"unified": f"{tmp_path}/v2/a.slice/p-c.scope"},
    }
    again = reopen(layout, said, manager)
    assert (again.unit, again.path, again.systemd) == (UNIT, "a.slice/p-c.scope", manager)
    assert again.describe() == said
    assert Cgroup(layout, "c").describe()["driver"] == "fs"


@pytest.mark.parametrize(
    "damage", [{"path": 5}, {"unit": None}, {"paths": []}, {"paths": {"unified": "/else"}}]
)
def test_a_damaged_description_is_refused(tmp_path: Path, damage: dict[str, object]) -> None:
    layout = unified(tmp_path)
    with pytest.raises(InvalidState):
        reopen(layout, Cgroup(layout, "c").describe() | damage)


def test_object_path_of_a_unit() -> None:
    assert unit_object("1a-b.scope") == "/org/freedesktop/systemd1/unit/_31a_2db_2escope"


def test_the_way_to_systemd_is_found_when_it_is_needed(
    fake: FakeSystemd, manager: Systemd, tmp_path: Path
) -> None:
    asked: list[bool] = []

    def find() -> Systemd:
        asked.append(True)
        return manager

    layout = unified(tmp_path)
    again = reopen(layout, Cgroup(layout, "c", UNIT).describe(), find)
    assert not again.frozen()
    assert again.pids() == []
    assert asked == []
    assert again.try_delete()
    assert again.try_delete()
    assert asked == [True]
    assert fake.members() == ["StopUnit", "ResetFailedUnit"] * 2
