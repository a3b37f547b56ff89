"""Which driver a container asks for, and the names of units."""

from __future__ import annotations

import pytest

from runtime.cgroups.driver import FS, SYSTEMD, driver_of
from runtime.cgroups.unit_name import Unit, expand_slice, parse_unit
from runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("path", "option", "driver"),
    [
        ("kubepods-pod1.slice:cri-containerd:c1", None, SYSTEMD),
        ("system.slice::c1", None, SYSTEMD),
        ("/pod/c1", None, FS),
        ("", None, FS),
        (None, None, FS),
        (":runc:c1", None, FS),
        ("a:b:c", None, FS),
        ("/x.slice:b:c", None, FS),
        ("x.slice:b:c:d", None, FS),
        ("/pod/c1", True, SYSTEMD),
        ("", True, SYSTEMD),
        ("system.slice:runc:c1", False, FS),
    ],
)
def test_an_option_counts_first_and_then_the_form_of_the_path(
    path: str | None, option: bool | None, driver: str
) -> None:
    assert driver_of(path, option) == driver


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("system.slice:runc:c1", Unit("system.slice", "runc-c1.scope", "c1")),
        (":runc:c1", Unit("system.slice", "runc-c1.scope", "c1")),
        ("-.slice:runc:c1", Unit("-.slice", "runc-c1.scope", "c1")),
        ("-:runc:c1", Unit("-.slice", "runc-c1.scope", "c1")),
        ("a-b.slice::c1", Unit("a-b.slice", "c1.scope", "c1")),
        ("a.slice:runc:a-c.slice", Unit("a.slice", "a-c.slice", "a-c.slice")),
        ("", Unit("system.slice", "manor-the_id.scope", "the_id")),
    ],
)
def test_a_path_names_a_unit(path: str, unit: Unit) -> None:
    assert parse_unit(path, "the_id") == unit


def test_the_rootless_live_in_user_slice() -> None:
    assert parse_unit("", "c", rootless=True).slice == "user.slice"
    assert parse_unit("x.slice:p:c", "c", rootless=True).slice == "x.slice"


def test_an_id_that_is_no_unit_name_is_escaped() -> None:
    assert parse_unit("", "a+b").name == "manor-a\\x2bb.scope"


@pytest.mark.parametrize(
    "path",
    [
        "/pod/c1",
        "c1",
        "a.slice:c1",
        "a.slice:b:c:d",
        "a.slice:b:",
        "a:b:c",
        "a/b.slice:b:c",
        "a.slice:b:../c",
        "a.slice:b/c:d",
        "a--b.slice:b:c",
        "-a.slice:b:c",
        ".slice:b:c",
        "...slice:b:c",
        "a.slice:b:c--d.slice",
        "a.slice:b:c\0",
        "a.slice:b:c\nd",
        "a.slice::.c",
        "a.slice:b:" + "c" * 300,
        "a" * 300 + ".slice:b:c",
    ],
)
def test_what_names_no_unit_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.cgroupsPath"):
        parse_unit(path, "id")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("-.slice", ""),
        ("system.slice", "system.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        (
            "kubepods-besteffort-pod1_2.slice",
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
        ),
    ],
)
def test_slices_nest_by_their_dashes(name: str, path: str) -> None:
    assert expand_slice(name) == path


def test_a_units_directory_is_below_its_slice() -> None:
    assert Unit("a-b.slice", "p-c.scope", "c").path == "a.slice/a-b.slice/p-c.scope"
    assert Unit("-.slice", "p-c.scope", "c").path == "p-c.scope"
    assert Unit("a.slice", "x-y.slice", "c").path == "x.slice/x-y.slice"
