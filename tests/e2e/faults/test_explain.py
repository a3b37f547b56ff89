"""What `explain` says is what is done: compared with the system calls of a real create, and with its own notes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.explain import acts_of, as_json, make_plans
from runtime.container import CreateOptions, CreateRequest
from runtime.operations.create import create
from runtime.spec.load import load_spec
from runtime.stages.plan import DIRECT, STAGED, Stdio
from runtime.waiting import run
from tests.e2e.faults.conftest import Runner, joining, mapped, rich

CALLS = "write,fsopen,fsconfig,fsmount,open_tree,move_mount,mount_setattr,mknodat,symlinkat,pivot_root"
CREATE = """
import sys
from runtime.cgroups.layout import detect_layout
from runtime.container import CreateRequest, open_host
from runtime.operations.create import create
from runtime.operations.delete import delete
from runtime.spec.load import load_spec
from runtime.stages.plan import Stdio
from runtime.waiting import run
state, name, bundle, shape = sys.argv[1:]
host = open_host(state, state + "/filters", detect_layout())
with open(bundle + "/config.json", "rb") as file:
    spec = load_spec(file.read())
run(delete(run(create(host, CreateRequest(name, bundle, spec, Stdio(), shape)))))
"""


@pytest.fixture(params=[(DIRECT, False), (STAGED, False)], ids=lambda way: way[0])
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Both shapes; apart from the creating process, create is the same."""
    chosen: tuple[str, bool] = request.param
    return chosen


def explained(runner: Runner, bundle_path: Path, data: bytes) -> dict[str, Any]:
    """The plan as `explain --format json` prints it, for the shape of the runner."""
    plans = make_plans(runner.host, bundle_path.name, str(bundle_path), load_spec(data))
    found: dict[str, Any] = json.loads(json.dumps(as_json(plans, acts_of(plans))))
    return found


def volumes(config: dict[str, Any]) -> None:
    """Limits in several controllers, and mounts of every kind."""
    config["linux"]["resources"] |= {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "pids": {"limit": 64},
        "blockIO": {"weight": 300},
    }
    config["linux"]["resources"]["devices"].append(
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    )
    config["mounts"] += [
        {"destination": "/host", "type": "bind", "source": "/usr/share", "options": ["rbind", "ro", "nodev"]},
        {"destination": "/same", "type": "bind", "source": "/usr/lib", "options": ["bind"]},
        {
            "destination": "/scratch",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["ro", "noatime", "size=1m"],
        },
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
    ]
    config["root"]["readonly"] = True


def strace(runner: Runner, bundle_path: Path, tmp_path: Path) -> list[tuple[str, str, str]]:
    """(call, arguments, result) of all processes of a create, in their order."""
    assert shutil.which("strace") is not None
    log = tmp_path / "strace"
    command = ["strace", "-f", "-qq", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={CALLS}"]
    program = [
        sys.executable,
        "-c",
        CREATE,
        f"{tmp_path}/traced",
        bundle_path.name,
        str(bundle_path),
        runner.shape,
    ]
    subprocess.run([*command, *program], check=True, cwd=Path(__file__).parents[3], timeout=120)
    found = []
    begun: dict[str, str] = {}  # by process: a call that another one came between
    for line in log.read_text().splitlines():
        pid, _blank, said = line.partition(" ")
        if said.endswith(" <unfinished ...>"):
            begun[pid] = said.removesuffix(" <unfinished ...>")
            continue
        if resumed := re.match(r"^ *<\.\.\. \w+ resumed>(.*)$", said):
            said = begun.pop(pid, "") + resumed[1]
        match = re.match(r"^ *(\w+)\((.*)\) += (\S+.*)$", said)
        if match:
            found.append((match[1], match[2], match[3]))
    return found


def details(plan: dict[str, Any], step: str) -> list[dict[str, Any]]:
    """What the plan says of a step."""
    found: list[dict[str, Any]] = next(each["details"] for each in plan["steps"] if each["step"] == step)
    return found


def test_cgroup_writes_are_those_of_the_plan(runner: Runner, tmp_path: Path) -> None:
    bundle = runner.bundle("true")
    volumes(bundle.config)
    plan = explained(runner, bundle.path, bundle.write())
    said = (*details(plan, "make cgroup"), *details(plan, "limit processes"))
    wanted = [_write(each) for each in said if "write" in each]
    cgroups = tuple(each["make"] for each in details(plan, "make cgroup") if "make" in each)
    done = []
    for call, arguments, _result in strace(runner, bundle.path, tmp_path):
        match = re.match(r'^\d+<(.*?)>, "(.*)", \d+$', arguments) if call == "write" else None
        if match and os.path.dirname(match[1]) in cgroups:
            done.append((match[1], match[2]))
    joined_and_left = ("/tasks", "/cgroup.procs", "/freezer.state", "/cgroup.kill")
    inherited = ("/cpuset.cpus", "/cpuset.mems")  # what a new v1 cpuset takes over from its parent
    assert [each for each in done if not each[0].endswith(joined_and_left + inherited)] == wanted
    assert len(wanted) > 15


def _write(detail: dict[str, Any]) -> tuple[str, str]:
    """What is written where, on this machine: a file that is not there has a stand-in."""
    stand_in = detail.get("or, without that file,")
    parent = Path(detail["to"]).parents[1]  # which stays, and has the same files
    if stand_in is None or (parent / Path(detail["to"]).name).exists():
        return detail["to"], detail["write"]
    value, _to, file = stand_in.split(" ")
    return f"{os.path.dirname(detail['to'])}/{file}", value


def test_mounts_are_those_of_the_plan_in_its_order(runner: Runner, tmp_path: Path) -> None:
    bundle = runner.bundle("true")
    volumes(bundle.config)
    plan = explained(runner, bundle.path, bundle.write())
    wanted: list[tuple[str, str]] = []
    for each in details(plan, "mount root file system"):
        if "mount" in each:
            wanted.append(("fsopen", each["mount"]))
        elif "bind" in each:
            wanted.append(("open_tree", each["bind"]))
    calls = strace(runner, bundle.path, tmp_path)
    before_pivot = calls[: next(index for index, each in enumerate(calls) if each[0] == "pivot_root")]
    done = []
    for call, arguments, _result in before_pivot:
        if call == "fsopen":
            done.append((call, arguments.split('"')[1]))
        elif call == "open_tree" and (source := arguments.split('"')[1]) and source != "/dev/null":
            done.append((call, source))
    assert done == wanted
    assert len(wanted) > 8
    # Flags: what fsmount(2) is given for each new file system.
    given = [arguments.rsplit(", ", 1)[1] for call, arguments, _result in before_pivot if call == "fsmount"]
    said = [each["flags"] for each in details(plan, "mount root file system") if "mount" in each]
    assert [sorted(_flags(each)) for each in given] == [sorted(each) for each in said]


def _flags(argument: str) -> list[str]:
    names = [
        name.removeprefix("MOUNT_ATTR_").lower() for name in argument.split("|") if name.startswith("MOUNT_")
    ]
    return ["ro" if name == "rdonly" else name for name in names if name != "relatime"]


def test_what_is_masked_and_read_only_is_what_the_plan_says(runner: Runner, tmp_path: Path) -> None:
    bundle = runner.bundle("cat", "/proc/self/mountinfo")
    volumes(bundle.config)
    plan = explained(runner, bundle.path, bundle.write())
    said = details(plan, "mask and protect paths")
    output = runner.run(bundle)
    mounts = [line.split(" ")[4] for line in output.stdout.splitlines()]
    for each in said:
        path = each.get("mask") or each["make read-only"]
        exists = path in ("/", "/scratch", "/sys/fs/cgroup") or os.path.exists(path)
        assert (path in mounts) == exists, path


@pytest.mark.parametrize(
    "change", [rich, mapped, volumes, None], ids=["rich", "mapped", "volumes", "joining"]
)
def test_the_steps_are_those_that_init_goes_through(runner: Runner, change: Any) -> None:
    if change is None:
        landlord = runner.started("sleep", "1000", change=_with_time)
        change = joining(landlord.pid)
    bundle = runner.bundle("true")
    if change is mapped:
        for parent in (bundle.path, *bundle.path.parents):
            if str(parent).startswith("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o055)
    change(bundle.config)
    data = bundle.write()
    plan = explained(runner, bundle.path, data)
    request = CreateRequest(bundle.path.name, str(bundle.path), load_spec(data), Stdio(), plan["shape"])
    container = run(create(runner.host, request))
    marks = [step for step, _when in container.marks]
    runner.containers.append(container)
    runner.stop(container)
    runner.delete(container)  # before the one whose namespaces it has
    of_main = {"plan", "make cgroup", "clone", "hear that it is ready", "save state", "begin"}
    of_init = [step for step in marks if step not in of_main]
    at_the_gate = next(index for index, each in enumerate(plan["steps"]) if each["step"] == "ask to start")
    said = [each["step"] for each in plan["steps"][:at_the_gate] if each["stage"] == "init"]
    assert of_init == said


def _with_time(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "time"})


def test_nothing_is_done(runner: Runner, tmp_path: Path) -> None:
    bundle = runner.bundle("true")
    rich(bundle.config)
    volumes(bundle.config)
    data = bundle.write()
    before = sorted(tmp_path.rglob("*"))
    plan = explained(runner, bundle.path, data)
    assert len(plan["steps"]) > 20
    assert sorted(tmp_path.rglob("*")) == before
    assert not [each["make"] for each in details(plan, "make cgroup") if os.path.exists(each.get("make", ""))]


def test_a_bundle_that_create_refuses_is_refused_in_the_same_words(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["mounts"].append({"destination": "/proc/x", "type": "tmpfs", "source": "tmpfs"})
    data = bundle.write()
    with pytest.raises(Exception) as ours:  # noqa: PT011 -- whatever create says
        explained(runner, bundle.path, data)
    request = CreateRequest(
        "x", str(bundle.path), load_spec(data), Stdio(), runner.shape, options=CreateOptions()
    )
    with pytest.raises(type(ours.value), match=re.escape(str(ours.value))):
        run(create(runner.host, request))


def test_the_command_prints_it(runner: Runner, tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "manor-oci"
    bundle = runner.bundle("true")
    bundle.write()
    arguments = [str(command), "--root", str(tmp_path / "root"), "explain", str(bundle.path)]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "mount proc on /proc source proc flags nosuid nodev noexec for mounts[0]" in said
    assert said.splitlines()[0].split() == ["main", "make", "cgroup"]
    as_json_too = subprocess.run(
        [*arguments, "--format", "json"], check=True, capture_output=True, timeout=60
    )
    assert json.loads(as_json_too.stdout)["steps"][-1]["step"] == "execute"
