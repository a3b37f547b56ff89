"""Create, start, exec, kill and delete, straight at the runtime's door."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime import state
from runtime.errors import (
    ALREADY_EXISTS,
    INVALID_CONFIG,
    UNSUPPORTED,
    InvalidId,
    InvalidState,
    ManorError,
    NotFound,
    StageError,
)
from runtime.operations import apart
from runtime.operations.kill import kill
from runtime.operations.start import start
from runtime.state import load
from runtime.waiting import run
from tests.e2e.runtime.conftest import Pipes, _reap
from tests.harness.mountinfo import mounts_of

if TYPE_CHECKING:
    from tests.e2e.runtime.conftest import Runner


def test_a_container_runs_its_program_and_ends_with_its_code(runner: Runner) -> None:
    output = runner.run(runner.bundle("sh", "-c", "echo out; echo err >&2; exit 7"))
    assert (output.code, output.stdout, output.stderr) == (7, "out\n", "err\n")


def test_init_is_pid_1_in_a_world_of_its_own(runner: Runner) -> None:
    output = runner.run(runner.bundle("sh", "-c", "echo $$; hostname; pwd; echo /proc/[0-9]*; echo *"))
    assert output.stdout.split() == [
        *("1", "manor", "/", "/proc/1"),
        *("bin", "dev", "etc", "home", "proc", "root", "sys", "tmp"),
    ]


@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "ipc", "uts", "cgroup"])
def test_every_namespace_of_the_spec_is_a_new_one(runner: Runner, kind: str) -> None:
    output = runner.run(runner.bundle("readlink", f"/proc/self/ns/{kind}"))
    assert output.stdout.strip().startswith(f"{kind}:[")
    assert output.stdout.strip() != os.readlink(f"/proc/self/ns/{kind}")


def test_a_new_network_namespace_has_its_loopback_up(runner: Runner) -> None:
    assert "UP LOOPBACK" in runner.run(runner.bundle("ifconfig", "lo")).stdout


def test_a_namespace_can_be_joined_by_path(runner: Runner) -> None:
    landlord = runner.started()
    bundle = runner.bundle("sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; echo $$")
    for namespace in bundle.config["linux"]["namespaces"]:
        if namespace["type"] in ("network", "pid", "ipc"):
            name = "net" if namespace["type"] == "network" else namespace["type"]
            namespace["path"] = f"/proc/{landlord.pid}/ns/{name}"
    net, pid, number = runner.run(bundle).stdout.split()
    assert net == os.readlink(f"/proc/{landlord.pid}/ns/net")
    assert pid == os.readlink(f"/proc/{landlord.pid}/ns/pid")
    assert int(number) > 1


def test_a_namespace_path_that_is_not_there_is_named(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["namespaces"][1]["path"] = "/run/no/such/netns"
    with pytest.raises(StageError, match="open network namespace /run/no/such/netns: No such file"):
        runner.create(bundle)


def test_a_namespace_path_of_another_kind_is_named(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["namespaces"][1]["path"] = "/proc/self/ns/uts"
    with pytest.raises(StageError, match="join network namespace /proc/self/ns/uts"):
        runner.create(bundle)


def test_a_container_does_not_run_before_it_is_started(runner: Runner) -> None:
    bundle = runner.bundle("touch", "/ran")
    container = runner.create(bundle)
    assert container.status == state.CREATED
    assert not (bundle.rootfs / "ran").exists()
    run(start(container))
    os.waitpid(container.pid, 0x40000000)
    container.ended()
    assert (bundle.rootfs / "ran").exists()


def test_a_created_container_that_is_never_started_can_be_removed(runner: Runner) -> None:
    container = runner.create(runner.bundle("true"))
    runner.stop(container)
    runner.delete(container)


def test_state_json_names_init_by_pid_and_start_time(runner: Runner) -> None:
    container = runner.started()
    stored = load(runner.host.root, container.id)
    assert stored.pid == container.pid
    assert state.is_alive(stored.pid, stored.start_time)
    runner.stop(container)
    assert not state.is_alive(stored.pid, stored.start_time)


def test_starting_twice_is_refused(runner: Runner) -> None:
    container = runner.started()
    with pytest.raises(InvalidState, match="cannot start container .* in running state"):
        run(start(container))


def test_an_id_in_use_is_refused_and_the_first_container_unharmed(runner: Runner) -> None:
    first = runner.started()
    with pytest.raises(ManorError, match=first.id) as caught:
        runner.create(runner.bundle("true"), container_id=first.id)
    assert caught.value.kind == ALREADY_EXISTS
    assert runner.exec(first, "true").code == 0


@pytest.mark.parametrize("bad", ["a/b", "..", "", "x" * 300])
def test_a_bad_id_is_refused(runner: Runner, bad: str) -> None:
    bundle = runner.bundle("true")
    if not bad:
        pytest.raises(InvalidId, state.check_id, bad)
        return
    with pytest.raises(InvalidId):
        runner.create(bundle, container_id=bad)


def test_a_program_that_is_not_in_the_image_fails_the_create(runner: Runner) -> None:
    with pytest.raises(StageError, match=r'exec: "no-such-program": executable file not found in \$PATH'):
        runner.create(runner.bundle("no-such-program"))


def test_a_program_that_the_kernel_cannot_run_fails_the_start(runner: Runner) -> None:
    bundle = runner.bundle("/bad")
    (bundle.rootfs / "bad").write_bytes(b"\x7fELF this is none")
    (bundle.rootfs / "bad").chmod(0o755)
    container = runner.create(bundle)
    with pytest.raises(StageError, match="execute /bad: .*[Ee]xec format error"):
        run(start(container))


def test_a_working_directory_that_is_not_there_is_made_or_named(runner: Runner) -> None:
    bundle = runner.bundle("pwd")
    bundle.config["process"]["cwd"] = "/srv/app"
    assert runner.run(bundle).stdout == "/srv/app\n"


def test_a_working_directory_that_is_a_file_fails_the_create(runner: Runner) -> None:
    bundle = runner.bundle("pwd")
    bundle.config["process"]["cwd"] = "/etc/passwd"
    with pytest.raises(StageError, match="/etc/passwd: .*Not a directory"):
        runner.create(bundle)


def test_a_mount_source_that_is_not_there_is_named(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["mounts"].append(
        {"destination": "/mnt", "type": "bind", "source": "/no/such/source", "options": ["rbind"]}
    )
    with pytest.raises(StageError, match="/no/such/source"):
        runner.create(bundle)


def test_a_spec_without_a_mount_namespace_is_refused(runner: Runner) -> None:
    bundle = runner.bundle("true")
    kinds = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [kind for kind in kinds if kind["type"] != "mount"]
    with pytest.raises(ManorError, match="mount namespace") as caught:
        runner.create(bundle)
    assert caught.value.kind == INVALID_CONFIG


def test_kill_reaches_init_and_then_finds_it_finished(runner: Runner) -> None:
    container = runner.started("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
    kill(container, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(container.pid, 0x40000000)[1]) == signal.SIGKILL
    container.ended()
    with pytest.raises(NotFound, match="process already finished"):
        kill(container, signal.SIGTERM)


def test_sigkill_reaches_everybody_where_no_pid_namespace_ends_with_init(runner: Runner) -> None:
    """And no other signal does; a signal for an init that has ended finds nobody."""

    def without_pid_namespace(config: dict[str, Any]) -> None:
        kept = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]
        config["linux"]["namespaces"] = kept

    script = "sleep 1000 & sleep 1000 & echo > /ready; wait"
    container = runner.started("sh", "-c", script, change=without_pid_namespace)
    while not Path(f"{container.bundle}/rootfs/ready").exists():
        time.sleep(0.01)
    with contextlib.ExitStack() as pidfds:
        held = [os.pidfd_open(pid) for pid in container.cgroup.pids()]
        for pidfd in held:
            pidfds.callback(os.close, pidfd)
        assert len(held) == 3
        kill(container, signal.SIGCONT)
        kill(container, signal.SIGKILL)
        for pidfd in held:
            ready, _, _ = select.select([pidfd], [], [], 30)
            assert ready, "one of them lives on"
    os.waitpid(container.pid, 0x40000000)
    container.ended()
    with pytest.raises(NotFound, match="process already finished"):
        kill(container, signal.SIGTERM)


def test_a_user_is_taken_with_groups_and_without_capabilities(runner: Runner) -> None:
    bundle = runner.bundle("sh", "-c", "id -u; id -g; id -G; grep CapEff /proc/self/status")
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [50, 60]}
    assert runner.run(bundle).stdout.split() == ["1000", "1000", "1000", "50", "60", "CapEff:", "0" * 16]


def test_nothing_of_the_hosts_descriptors_is_open_in_the_container(runner: Runner) -> None:
    leaked = os.open("/", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        output = runner.run(runner.bundle("sh", "-c", "for fd in /proc/self/fd/*; do readlink $fd; done"))
    finally:
        os.close(leaked)
    targets = output.stdout.split()
    assert len(targets) == 3
    assert all(target.startswith("pipe:") for target in targets)


def test_signals_are_neither_ignored_nor_blocked(runner: Runner) -> None:
    output = runner.run(runner.bundle("grep", "-E", "SigBlk|SigIgn", "/proc/self/status"))
    assert output.stdout.split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def change_limits(config: dict[str, Any]) -> None:
    config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]


def test_rlimits_are_in_force(runner: Runner) -> None:
    bundle = runner.bundle("sh", "-c", "ulimit -Sn; ulimit -Hn")
    change_limits(bundle.config)
    assert runner.run(bundle).stdout.split() == ["100", "200"]


@pytest.mark.parametrize("limit", [0, 1])
def test_a_container_of_one_process_has_one(runner: Runner, limit: int) -> None:
    bundle = runner.bundle("sh", "-c", "echo first; (echo second); echo third")
    bundle.config["linux"]["resources"]["pids"] = {"limit": limit}
    output = runner.run(bundle)
    assert output.stdout == "first\n"
    assert "can't fork" in output.stderr
    assert output.code != 0


def test_no_stage_takes_a_place_of_the_containers_processes(runner: Runner) -> None:
    bundle = runner.bundle("sh", "-c", "(echo child); sleep 1000 & (echo another); echo end")
    bundle.config["linux"]["resources"]["pids"] = {"limit": 2}
    with Pipes() as pipes:
        container = runner.create(bundle, pipes.stdio)
        pipes.close_far_ends()
        _reap()  # as a shim does
        run(start(container))
        output = pipes.collect(container.pid)
    container.ended()
    runner.delete(container)
    assert output.stdout == "child\n"
    assert "can't fork" in output.stderr


def test_a_limit_of_processes_that_cannot_be_set_leaves_nothing(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["resources"]["pids"] = {"limit": 1 << 40}
    with pytest.raises(
        ManorError, match=r"linux\.resources\.pids\.limit: write '1099511627776' to .*/pids\.max"
    ):
        runner.create(bundle)


def test_a_time_namespace_has_its_offsets(runner: Runner) -> None:
    bundle = runner.bundle("cat", "/proc/uptime", "/proc/self/timens_offsets")
    bundle.config["linux"]["namespaces"].append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000_000}}
    words = runner.run(bundle).stdout.split()
    assert float(words[0]) > 1_000_000_000
    assert words[words.index("boottime") + 1] == "1000000000"


def test_a_personality_is_in_force_for_init_and_execs(runner: Runner) -> None:
    def linux32(config: dict[str, Any]) -> None:
        config["linux"]["personality"] = {"domain": "LINUX32"}

    container = runner.started(change=linux32)
    assert runner.exec(container, "uname", "-m").stdout == "i686\n"
    bundle = runner.bundle("uname", "-m")
    linux32(bundle.config)
    assert runner.run(bundle).stdout == "i686\n"


def test_resctrl_groups_are_refused_on_a_machine_without_them(runner: Runner) -> None:
    if "resctrl" in Path("/proc/mounts").read_text():
        pytest.skip("this machine has resctrl mounted")
    bundle = runner.bundle("true")
    bundle.config["linux"]["intelRdt"] = {"closID": "a"}
    with pytest.raises(ManorError, match="resctrl") as caught:
        runner.create(bundle)
    assert caught.value.kind == UNSUPPORTED


def test_a_network_device_that_is_not_there_is_named(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["netDevices"] = {"nosuch0": {}}
    with pytest.raises(ManorError, match="nosuch0"):
        runner.create(bundle)


def test_network_devices_need_a_network_namespace(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["netDevices"] = {"nosuch0": {}}
    namespaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [each for each in namespaces if each["type"] != "network"]
    with pytest.raises(ManorError, match="linux.netDevices: cannot be moved without a network namespace"):
        runner.create(bundle)


def test_a_user_namespace_maps_root(runner: Runner) -> None:
    with tempfile.TemporaryDirectory(prefix="manor-tests-") as directory:
        os.chmod(directory, 0o755)  # the mapped root must reach it; pytest's own directories are 0700
        runner.directory = Path(directory)
        _run_with_a_user_namespace(runner)


def _run_with_a_user_namespace(runner: Runner) -> None:
    bundle = runner.bundle("sh", "-c", "id -u; cat /proc/self/uid_map")
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 100_000, "size": 1000}]
    bundle.config["linux"].update(uidMappings=mapping, gidMappings=mapping)
    output = runner.run(bundle)
    assert output.stdout.split() == ["0", "0", "100000", "1000"], output.stderr


def test_the_mounts_of_a_container_in_the_hosts_mount_namespace_end_with_it(runner: Runner) -> None:
    def on_the_host(config: dict[str, Any]) -> None:
        linux = config["linux"]
        linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "mount"]
        linux.pop("maskedPaths", None)
        linux.pop("readonlyPaths", None)

    bundle = runner.bundle("no-such-command")
    on_the_host(bundle.config)
    with pytest.raises(ManorError, match="no-such-command"):
        runner.create(bundle)
    assert mounts_of(bundle.path) == []
    bundle.config["process"]["args"] = ["sleep", "1000"]
    made = runner.create(bundle)
    assert mounts_of(bundle.path) != []
    runner.stop(made)
    runner.delete(made)
    assert mounts_of(bundle.path) == []


def test_a_container_that_cannot_be_handed_over_is_gone(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_container: object) -> None:
        raise OSError(24, "Too many open files")

    runner.apart = True
    monkeypatch.setattr(apart, "_describe", fail)
    with pytest.raises(StageError, match="0:CREATE: create container .*: Too many open files"):
        runner.create(runner.bundle("sleep", "1000"))


def test_an_init_that_the_oom_killer_took_says_so(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["resources"]["memory"] = {"limit": 200_000}
    with pytest.raises(ManorError, match="container init was OOM-killed"):
        runner.create(bundle)
