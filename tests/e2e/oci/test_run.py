"""run in the foreground: streams, exit codes, signals, and that the container is gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories


def _until(true: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def _share_pids(config: dict[str, Any]) -> None:
    """No PID namespace: init is a process like others, and what it leaves behind lives on."""
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_output_and_input_are_passed_on(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "cat; echo out; echo err >&2")
    done = oci("run", "-b", bundle.path, "c", stdin=b"in\n")
    assert (done.code, done.stdout, done.stderr) == (0, "in\nout\n", "err\n")
    assert not (oci.root / "c").exists()
    assert not cgroup_directories(bundle.path.name)


def test_a_key_of_the_config_in_another_letter_case_counts(oci: Oci) -> None:
    def change(config: dict[str, Any]) -> None:
        config["Root"] = {"path": config.pop("root")["path"], "readOnly": True}
        config["linux"]["resources"]["Pids"] = {"Limit": 21}

    bundle = oci.bundle("sh", "-c", "grep -q ' / ro' /proc/self/mountinfo && sleep 1000", change=change)
    oci.ok("run", "--detach", "--bundle", bundle.path, bundle.path.name)
    assert oci.cgroup_file(bundle.path.name, "pids.max") == "21"
    assert oci("exec", bundle.path.name, "touch", "/new").code != 0


@pytest.mark.parametrize("code", [0, 1, 42, 126, 127, 255])
def test_the_exit_code_is_the_programs(oci: Oci, code: int) -> None:
    bundle = oci.bundle("sh", "-c", f"exit {code}")
    assert oci("run", "-b", bundle.path, "c").code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_that_ends_it_is_told_as_128_and_its_number(oci: Oci, number: signal.Signals) -> None:
    bundle = oci.bundle("sh", "-c", f"kill -{int(number)} $$", change=_share_pids)
    assert oci("run", "-b", bundle.path, "c").code == 128 + number


@pytest.mark.parametrize("megabytes", [1, 20])
def test_much_output_arrives_whole(oci: Oci, megabytes: int) -> None:
    bundle = oci.bundle("sh", "-c", f"head -c {megabytes << 20} /dev/zero; echo end")
    done = oci("run", "-b", bundle.path, "c")
    assert len(done.stdout) == (megabytes << 20) + 4
    assert done.stdout.endswith("end\n")


def test_much_input_arrives_whole(oci: Oci) -> None:
    bundle = oci.bundle("wc", "-c")
    assert oci("run", "-b", bundle.path, "c", stdin=bytes(5 << 20)).stdout.strip() == str(5 << 20)


def test_the_end_of_the_input_is_passed_on(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "cat; echo seen")
    running = subprocess.Popen(
        oci.words("run", "-b", bundle.path, "c"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=oci.environment(),
    )
    out, _err = running.communicate(b"given", timeout=60)
    assert out == b"givenseen\n"


def test_a_reader_that_goes_ends_the_program_and_not_the_container_s_other_streams(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "yes; echo $? >&2; exit 3")
    (bundle.rootfs / "bin/yes").symlink_to("busybox")
    running = oci.begin("run", "-b", bundle.path, "c")
    assert running.stdout is not None
    assert running.stdout.read(2) == b"y\n"
    running.stdout.close()
    assert running.wait(60) == 3
    assert running.stderr is not None
    assert running.stderr.read().split()[-1] in (b"1", b"141")


def test_a_stopped_reader_of_one_stream_does_not_stop_the_other(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "head -c 1000000 /dev/zero & echo here >&2; wait")
    running = oci.begin("run", "-b", bundle.path, "c")
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stderr.readline() == b"here\n"
    assert len(running.stdout.read()) == 1000000
    assert running.wait(60) == 0


def test_the_program_does_not_get_our_own_files(oci: Oci) -> None:
    """What is opened for appending could else be reopened for writing, by who owns it inside."""
    bundle = oci.bundle("sh", "-c", "for n in 0 1 2; do readlink /proc/self/fd/$n; done")
    done = oci("run", "-b", bundle.path, "c")
    assert [line.partition(":")[0] for line in done.stdout.split()] == ["pipe"] * 3


def test_the_streams_belong_to_the_user(oci: Oci) -> None:
    bundle = oci.bundle(
        "sh",
        "-c",
        "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin; stat -L -c %u /proc/self/fd/1",
        change=lambda config: config["process"].update(user={"uid": 1000, "gid": 1000}),
    )
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if not (bundle.rootfs / "dev" / name).is_symlink():
            (bundle.rootfs / "dev" / name).symlink_to(f"/proc/self/fd/{number}")
    done = oci("run", "-b", bundle.path, "c", stdin=b"in\n")
    assert (done.code, done.stdout, done.stderr) == (0, "out\nin\n1000\n", "err\n")


def test_the_streams_belong_to_the_root_of_a_user_namespace(oci: Oci) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        for kind in ("uidMappings", "gidMappings"):
            config["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]

    bundle = oci.bundle("sh", "-c", "echo out > /proc/self/fd/1; cat /proc/self/fd/0", change=change)
    with tempfile.TemporaryDirectory() as place:  # pytest's own may be entered by nobody else
        os.chmod(place, 0o711)
        rootfs = shutil.move(bundle.rootfs, f"{place}/rootfs")
        for directory, directories, files in os.walk(rootfs):
            for name in [".", *directories, *files]:
                os.chown(Path(directory, name), 100000, 100000, follow_symlinks=False)
        bundle.config["root"]["path"] = rootfs
        bundle.write()
        done = oci("run", "-b", bundle.path, "c", stdin=b"in\n")
    assert (done.code, done.stdout) == (0, "out\nin\n"), done.stderr


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 3]
)
def test_signals_are_forwarded(oci: Oci, number: int) -> None:
    name = signal.Signals(number).name[3:] if number < 32 else str(int(number))
    bundle = oci.bundle(
        "sh", "-c", f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    )
    running = oci.begin("run", "-b", bundle.path, "c")
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(number)
    assert running.stdout.readline() == b"got\n"
    assert running.wait(60) == 7


def test_a_signal_during_the_start_reaches_the_program(oci: Oci) -> None:
    hook = oci.directory / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {oci.directory}/hooked; exec sleep 0.5\n")
    hook.chmod(0o755)

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"createRuntime": [{"path": str(hook)}]}
        _share_pids(config)  # else it ignores what it has set no trap for, as the first process there is

    bundle = oci.bundle("sleep", "1000", change=change)
    running = oci.begin("run", "-b", bundle.path, "c")
    _until((oci.directory / "hooked").exists)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM


def test_a_stopped_reader_does_not_keep_signals_back(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "trap 'exit 5' TERM; echo r >&2; yes & while :; do sleep 0.05; done")
    (bundle.rootfs / "bin/yes").symlink_to("busybox")
    running = oci.begin("run", "-b", bundle.path, "c")
    assert running.stderr is not None
    assert running.stderr.readline() == b"r\n"
    time.sleep(0.3)  # the pipe is full, and nobody reads it
    running.send_signal(signal.SIGTERM)
    _until(lambda: '"running"' not in oci("state", "c").stdout)
    out = threading.Thread(target=running.communicate)
    out.start()
    out.join(60)
    assert running.returncode == 5


def test_keep_leaves_a_stopped_container(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "exit 4")
    assert oci("run", "--keep", "-b", bundle.path, "c").code == 4
    assert oci.state("c")["status"] == "stopped"
    assert cgroup_directories(bundle.path.name)
    oci.ok("delete", "c")


def test_what_outlives_init_goes_with_the_container(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "sleep 1000 & echo $!; exit 0", change=_share_pids)
    done = oci("run", "-b", bundle.path, "c")
    assert done.code == 0
    process = Path(f"/proc/{done.stdout.strip()}/stat")
    # Who it belongs to now may not have collected it; we have.
    assert not process.exists() or (not oci.is_manor and ") Z " in process.read_text())


@pytest.mark.parametrize("subreaper", [True, False])
def test_orphans_are_ours_while_we_wait(oci: Oci, subreaper: bool) -> None:
    bundle = oci.bundle("sh", "-c", "sh -c 'sleep 1000 & echo $$ $!'; sleep 1000", change=_share_pids)
    words = ["run", *([] if subreaper else ["--no-subreaper"]), "-b", str(bundle.path), "c"]
    running = oci.begin(*words)
    assert running.stdout is not None
    parent, orphan = map(int, running.stdout.readline().split())
    _until(lambda: _parent(orphan) != parent)
    assert (_parent(orphan) == running.pid) == subreaper
    os.kill(orphan, signal.SIGKILL)
    if subreaper:
        _until(lambda: not Path(f"/proc/{orphan}").exists())
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM


def test_the_command_that_is_not_there_is_named(oci: Oci) -> None:
    bundle = oci.bundle("nonsense")
    done = oci("run", "-b", bundle.path, "c")
    assert done.code == 1
    assert 'exec: "nonsense": executable file not found in $PATH' in done.error
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


def test_a_start_that_fails_leaves_nothing(oci: Oci) -> None:
    bundle = oci.bundle("/broken")
    (bundle.rootfs / "broken").write_text("#!/nonsense foo\n")
    (bundle.rootfs / "broken").chmod(0o755)
    done = oci("run", "-b", bundle.path, "c")
    assert done.code != 0
    assert "exec /broken: no such file or directory" in done.stderr
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


def test_an_id_in_use_is_left_alone(oci: Oci) -> None:
    name = oci.started()
    bundle = oci.bundle("true")
    done = oci("run", "-b", bundle.path, name)
    assert done.code == 1
    assert "exist" in done.error
    assert oci.state(name)["status"] == "running"


def test_it_can_be_run_again_and_again(oci: Oci) -> None:
    bundle = oci.bundle("true")
    for _time in range(5):
        assert oci("run", "-b", bundle.path, "c").code == 0


def test_closed_standard_streams_are_no_trap(oci: Oci) -> None:
    bundle = oci.bundle(
        "sh", "-c", "echo here; for n in 0 1 2; do readlink /proc/self/fd/$n; done > /tmp/fds"
    )
    words = " ".join(oci.words("run", "-b", bundle.path, "c"))
    done = subprocess.run(
        ["sh", "-c", f"exec {words} <&- >&- 2>&-"], env=oci.environment(), timeout=60, check=False
    )
    assert done.returncode == 0
    assert all(
        line.startswith(("pipe:", "/tmp/fds")) for line in (bundle.rootfs / "tmp/fds").read_text().split()
    )


@pytest.mark.parametrize("log", [[], ["--log", "log"]])
def test_a_file_of_ours_never_becomes_a_standard_stream(oci: Oci, log: list[str]) -> None:
    bundle = oci.bundle("sh", "-c", "echo out; echo err >&2")
    words = " ".join(oci.words(*log, "run", "-b", bundle.path, "c"))
    done = oci.run(["sh", "-c", f"exec {words} >&- 2>&-"])
    assert done.code == 0
    if log:
        assert (oci.directory / "log").read_text() == ""


def test_the_file_mode_mask_and_ignored_signals_of_the_caller_do_not_matter(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status; umask; touch /tmp/made")
    (bundle.rootfs / "bin/umask").unlink(missing_ok=True)

    def before() -> None:
        os.umask(0o077)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    done = subprocess.run(
        oci.words("run", "-b", bundle.path, "c"),
        env=oci.environment(),
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[lines.index("SigBlk:") + 1] == "0" * 16
    assert lines[-1] == "0022"
    if oci.is_manor:  # Go hands ignored signals on
        assert lines[lines.index("SigIgn:") + 1] == "0" * 16
