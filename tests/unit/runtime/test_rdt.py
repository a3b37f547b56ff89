"""Groups are made in a directory tree that stands in for resctrl: no machine of ours has one.

It holds the files that the kernel would, and a new directory gets them as the kernel would make them. What the
kernel makes of a line that is written, and of a process that joins, is not tested here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from runtime import rdt
from runtime.errors import ConfigError, Unsupported
from runtime.rdt import RdtError, RdtPlan, enter, find_resctrl, join, plan_rdt, remove
from runtime.spec.model import IntelRdt

if TYPE_CHECKING:
    from pathlib import Path

SCHEMATA = "    L3:0=fffff;1=0ff00\n    MB:0=100;1= 70\n"

# ---- the plan ----------------------------------------------------------------------------------


def test_without_a_class_the_containers_own_group_is_made() -> None:
    plan = plan_rdt(IntelRdt(), "c1")
    assert plan == RdtPlan("c1", must_exist=False, shared=False, lines=(), compared=(), monitoring="")


def test_a_class_with_nothing_to_make_it_of_must_exist() -> None:
    assert plan_rdt(IntelRdt("gold"), "c1").must_exist
    assert plan_rdt(IntelRdt("/"), "c1") == RdtPlan("", True, True, (), (), "")
    for given in ({"schemata": ("L2:0=f",)}, {"l3_cache_schema": "L3:0=f"}, {"mem_bw_schema": "MB:0=10"}):
        plan = plan_rdt(IntelRdt("gold", **given), "c1")
        assert (plan.name, plan.must_exist, plan.shared) == ("gold", False, True)


def test_lines_are_written_cache_first_then_bandwidth_then_the_rest() -> None:
    asked = IntelRdt(None, ("L2:0=f", "L3:1=3"), "L3:0=f", "MB:0=10", enable_monitoring=True)
    plan = plan_rdt(asked, "c1")
    assert plan.lines == ("L3:0=f", "MB:0=10", "L2:0=f", "L3:1=3")
    assert plan.compared == ("L3:0=f", "MB:0=10")
    assert plan.monitoring == "c1"


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        (IntelRdt("."), "closID"),
        (IntelRdt(".."), "closID"),
        (IntelRdt("a/b"), "closID"),
        (IntelRdt("/a"), "closID"),
        (IntelRdt("info"), "closID"),
        (IntelRdt("mon_groups"), "closID"),
        (IntelRdt("x" * 256), "closID"),
        (IntelRdt(schemata=("L3:0=f", "L3:0=f\nMB:0=1")), "schemata[1]"),
        (IntelRdt(l3_cache_schema="L3:0=f\n"), "l3CacheSchema"),
        (IntelRdt(mem_bw_schema="MB:0=1\n"), "memBwSchema"),
        (IntelRdt(mem_bw_schema="0=10"), "memBwSchema"),
    ],
)
def test_what_resctrl_could_not_mean_is_named(asked: IntelRdt, path: str) -> None:
    with pytest.raises(ConfigError) as failure:
        plan_rdt(asked, "c1")
    assert failure.value.path == f"linux.intelRdt.{path}"


# ---- where it is -------------------------------------------------------------------------------


def test_it_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    lines = (
        "22 1 0:20 / /sys rw,relatime shared:7 - sysfs sysfs rw",
        r"35 22 0:32 / /mnt/my\040resctrl rw,relatime shared:16 - resctrl resctrl rw",
    )
    (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
    assert find_resctrl(str(tmp_path / "mountinfo")) == "/mnt/my resctrl"


def test_without_it_nothing_is_run(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("22 1 0:20 / /resctrl rw - sysfs resctrl rw\n")
    with pytest.raises(Unsupported, match=r"linux\.intelRdt .* no resctrl file system is mounted"):
        find_resctrl(str(tmp_path / "mountinfo"))
    with pytest.raises(RdtError, match="look for resctrl: .*: No such file"):
        find_resctrl(str(tmp_path / "nothing"))


@pytest.mark.skipif(os.path.isdir("/sys/fs/resctrl/info"), reason="this machine has resctrl")
def test_this_machine_says_that_it_has_none() -> None:
    with pytest.raises(Unsupported):
        find_resctrl()


# ---- groups, in a tree that stands in for resctrl ----------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "stand-in"
    real_mkdir, real_rmdir = os.mkdir, os.rmdir

    def mkdir(path: str | Path, mode: int = 0o777) -> None:
        real_mkdir(path, mode)
        made = root / path
        (made / "tasks").write_text("")
        if made.parent.name != "mon_groups":
            (made / "schemata").write_text(SCHEMATA)
            real_mkdir(made / "mon_groups")

    def rmdir(path: str) -> None:
        for directory, subdirectories, files in os.walk(path, topdown=False):
            for name in files:
                os.unlink(f"{directory}/{name}")
            for name in subdirectories:
                real_rmdir(f"{directory}/{name}")
        real_rmdir(path)

    mkdir(root)
    for name in ("info/L3", "info/MB"):
        (root / name).mkdir(parents=True)
    (root / "info/MB/bandwidth_gran").write_text("10\n")
    (root / "info/last_cmd_status").write_text("ok\n")
    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "rmdir", rmdir)
    return root


def entered(tree: Path, asked: IntelRdt) -> tuple[str, bool]:
    return enter(plan_rdt(asked, "c1"), str(tree), 42)


def content(path: Path) -> str:
    return path.read_text()


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (IntelRdt(), ()),
        (IntelRdt(), ("c1",)),
        (IntelRdt(enable_monitoring=True), ()),
        (IntelRdt("gold", schemata=("L3:0=f",)), ()),
        (IntelRdt("gold", enable_monitoring=True), ("gold",)),
        (IntelRdt("/", enable_monitoring=True), ()),
        (IntelRdt("/"), ()),
    ],
)
def test_what_is_to_be_removed_one_day_is_known_before_it_is_made(
    tree: Path, asked: IntelRdt, there: tuple[str, ...]
) -> None:
    for name in there:
        os.mkdir(tree / name)
    said = rdt.expected(plan_rdt(asked, "c1"), str(tree))
    made = entered(tree, asked)
    place = rdt.place(*made)
    assert said == (made if place else None)
    assert not place or rdt.is_place(place, str(tree))


def test_who_is_in_a_group_is_read_from_it(tree: Path) -> None:
    os.mkdir(tree / "c1")
    (tree / "c1" / "tasks").write_text("4\n2\n")
    assert rdt.tasks(f"{tree}/c1") == [4, 2]
    assert rdt.tasks(f"{tree}/c2") == []
    (tree / "c1" / "tasks").write_text("x")
    with pytest.raises(RdtError, match=r"read .*/c1/tasks"):
        rdt.tasks(f"{tree}/c1")


def test_a_group_is_made_configured_and_joined(tree: Path) -> None:
    asked = IntelRdt(None, ("L2:0=f",), "L3:0=f0", "MB:0=20")
    assert entered(tree, asked) == (f"{tree}/c1", True)
    assert content(tree / "c1/schemata").startswith("L3:0=f0\nMB:0=20\nL2:0=f\n")
    assert content(tree / "c1/tasks") == "42"
    remove(f"{tree}/c1", True)
    assert not (tree / "c1").exists()
    remove(f"{tree}/c1", True)  # a second time is fine


def test_the_limits_stand_before_a_process_is_under_them(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = rdt._write

    def note(path: str, text: str, what: str, root: str) -> None:
        written.append(os.path.relpath(path, tree))
        real(path, text, what, root)

    monkeypatch.setattr(rdt, "_write", note)
    entered(tree, IntelRdt(schemata=("L3:0=f",), enable_monitoring=True))
    assert written == ["c1/schemata", "c1/tasks", "c1/mon_groups/c1/tasks"]


def test_without_a_schema_no_schemata_are_written(tree: Path) -> None:
    entered(tree, IntelRdt())
    assert content(tree / "c1/schemata") == SCHEMATA


def test_a_class_is_joined_and_stays_when_the_container_goes(tree: Path) -> None:
    (tree / "gold").mkdir()
    assert entered(tree, IntelRdt("gold")) == (f"{tree}/gold", False)
    assert content(tree / "gold/tasks") == "42"
    remove(f"{tree}/gold", False)
    assert (tree / "gold").is_dir()


def test_a_class_that_we_make_stays_as_well(tree: Path) -> None:
    group, ours = entered(tree, IntelRdt("gold", ("L3:0=f",)))
    assert (group, ours) == (f"{tree}/gold", False)
    remove(group, ours)
    assert (tree / "gold").is_dir()


def test_a_group_of_the_containers_name_that_was_there_is_not_ours(tree: Path) -> None:
    (tree / "c1").mkdir()
    assert entered(tree, IntelRdt()) == (f"{tree}/c1", False)


def test_the_class_of_the_root_is_the_root(tree: Path) -> None:
    group, ours = entered(tree, IntelRdt("/"))
    assert (group, ours) == (str(tree), False)
    assert content(tree / "tasks") == "42"
    remove(group, ours)
    assert tree.is_dir()


def test_a_class_that_must_exist_is_not_made(tree: Path) -> None:
    with pytest.raises(RdtError, match="resctrl group .*/gold does not exist, and nothing is given"):
        entered(tree, IntelRdt("gold"))
    assert not (tree / "gold").exists()


@pytest.mark.parametrize(
    ("asked", "matches"),
    [
        (IntelRdt("gold", l3_cache_schema="L3:0=fffff;1=ff00"), True),
        (IntelRdt("gold", l3_cache_schema="L3:1=FF00"), True),
        (IntelRdt("gold", l3_cache_schema="L3:00=0fffff"), True),
        (IntelRdt("gold", l3_cache_schema="L3:0=ffff0"), False),
        (IntelRdt("gold", l3_cache_schema="L3:2=f"), False),
        (IntelRdt("gold", l3_cache_schema="0=fffff"), False),
        (IntelRdt("gold", mem_bw_schema="MB:0=100;1=70"), True),
        (IntelRdt("gold", mem_bw_schema="MB:1=63"), True),  # rounded up to a step of ten
        (IntelRdt("gold", mem_bw_schema="MB:1=60"), False),
        (IntelRdt("gold", l3_cache_schema="L3:0=fffff", mem_bw_schema="MB:1=80"), False),
        (IntelRdt("gold", schemata=("L3:0=1",)), True),  # only the two old fields are compared
    ],
    ids=repr,
)
def test_a_class_that_is_there_must_be_what_is_asked_for(tree: Path, asked: IntelRdt, matches: bool) -> None:
    (tree / "gold").mkdir()
    if matches:
        entered(tree, asked)
        return
    with pytest.raises(RdtError, match=r"exists with .*, which does not match '"):
        entered(tree, asked)
    assert content(tree / "gold/schemata") == SCHEMATA
    assert content(tree / "gold/tasks") == ""


@pytest.mark.parametrize(
    ("asked", "missing", "message"),
    [
        (IntelRdt(l3_cache_schema="L3:0=f"), "info/L3", "l3CacheSchema .* L3 cannot be allocated here"),
        (IntelRdt(mem_bw_schema="MB:0=10"), "info/MB", "memBwSchema .* MB cannot be allocated here"),
    ],
)
def test_a_machine_that_cannot_allocate_it_says_so(
    tree: Path, asked: IntelRdt, missing: str, message: str
) -> None:
    (tree / missing).rename(tree / "gone")
    with pytest.raises(Unsupported, match=message):
        entered(tree, asked)
    assert not (tree / "c1").exists()


def test_monitoring_has_a_group_of_its_own_which_goes_with_the_container(tree: Path) -> None:
    (tree / "gold").mkdir()
    group, ours = entered(tree, IntelRdt("gold", enable_monitoring=True))
    assert (group, ours) == (f"{tree}/gold/mon_groups/c1", False)
    assert content(tree / "gold/tasks") == content(tree / "gold/mon_groups/c1/tasks") == "42"
    remove(group, ours)
    assert os.listdir(tree / "gold/mon_groups") == []
    assert (tree / "gold/tasks").exists()


def test_monitoring_in_a_group_of_ours_goes_with_it(tree: Path) -> None:
    group, ours = entered(tree, IntelRdt(enable_monitoring=True))
    assert (group, ours) == (f"{tree}/c1/mon_groups/c1", True)
    remove(group, ours)
    assert not (tree / "c1").exists()


def test_a_tenant_joins_the_landlords_group_and_its_monitoring(tree: Path) -> None:
    group, _ours = entered(tree, IntelRdt(enable_monitoring=True))
    join(group, 77)
    assert content(tree / "c1/tasks") == content(tree / "c1/mon_groups/c1/tasks") == "77"
    join(f"{tree}/gone", 77)  # nothing to join any more


def refuse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writes to `path` fail, as the kernel's do."""
    real = os.open

    def open_(name: Any, *arguments: Any, **named: Any) -> int:
        if str(name) == str(path):
            raise OSError(22, "Invalid argument", str(name))
        return real(name, *arguments, **named)

    monkeypatch.setattr(os, "open", open_)


@pytest.mark.parametrize("file", ["c1/schemata", "c1/tasks", "c1/mon_groups/c1/tasks"])
def test_a_failure_leaves_nothing_and_tells_what_the_kernel_said(
    tree: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    (tree / "info/last_cmd_status").write_text("Mask out of range\n")
    refuse(tree / file, monkeypatch)
    with pytest.raises(RdtError, match=r"Invalid argument, last_cmd_status: Mask out of range$"):
        entered(tree, IntelRdt(schemata=("L3:0=f",), enable_monitoring=True))
    assert not (tree / "c1").exists()


def test_a_failure_in_a_class_takes_only_the_monitoring_away(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "gold").mkdir()
    refuse(tree / "gold/mon_groups/c1/tasks", monkeypatch)
    with pytest.raises(RdtError):
        entered(tree, IntelRdt("gold", enable_monitoring=True))
    assert (tree / "gold/schemata").exists()
    assert os.listdir(tree / "gold/mon_groups") == []


def test_a_group_that_cannot_be_made_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(_path: str, _mode: int) -> None:
        raise OSError(28, "No space left on device")

    (tree / "info/last_cmd_status").write_text("out of CLOSIDs\n")
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(RdtError, match="make resctrl group .*/c1: No space.*last_cmd_status: out of CLOSIDs"):
        entered(tree, IntelRdt())


def test_a_group_that_will_not_go_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rmdir(path: str) -> None:
        raise OSError(16, "Device or resource busy", path)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(RdtError, match="remove resctrl group .*/c1: .*busy"):
        remove(f"{tree}/c1", True)
