"""exec: what runs, as whom, with what, and which exit code tells of it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories
from tests.harness.bundles import Bundle
from tests.harness.waiting import remove_cgroup


def _process(oci: Oci, *args: str, **changes: Any) -> Path:
    """A process.json."""
    file = oci.directory / "process.json"
    file.write_text(json.dumps(Bundle.process(list(args)) | changes))
    return file


def test_it_runs_in_the_container_beside_init(oci: Oci) -> None:
    name = oci.started()
    done = oci("exec", name, "sh", "-c", "hostname; cat; echo err >&2", stdin=b"in\n")
    assert (done.code, done.stdout, done.stderr) == (0, "manor\nin\n", "err\n")


def test_it_works_in_a_container_that_was_not_started(oci: Oci) -> None:
    name = oci.created()
    assert oci.ok("exec", name, "echo", "early") == "early\n"
    assert oci.state(name)["status"] == "created"
    oci.ok("start", name)


@pytest.mark.parametrize("code", [0, 1, 42, 126, 127, 255])
def test_the_exit_code_is_the_programs(oci: Oci, code: int) -> None:
    name = oci.started()
    assert oci("exec", name, "sh", "-c", f"exit {code}").code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_that_ends_it_is_told_as_128_and_its_number(oci: Oci, number: signal.Signals) -> None:
    name = oci.started()
    assert oci("exec", name, "sh", "-c", f"kill -{int(number)} $$").code == 128 + number


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{c}", "nonsense"], 'exec: "nonsense": executable file not found in $PATH'),
        (["{c}", "/nonsense"], 'exec: "/nonsense": stat /nonsense: no such file or directory'),
        (["{c}", "/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
        (["{c}", "/bin"], 'exec: "/bin": is a directory'),
        (["nobody", "true"], "does not exist"),
        (["{c}"], "exec args cannot be empty"),
        (["--pid-file", "/nonexistent/pid", "{c}", "true"], "/nonexistent/"),
        (["--process", "/nonexistent", "{c}"], "/nonexistent"),
        (["--cwd", "tmp", "{c}", "true"], "Cwd must be an absolute path"),
        (["--cwd", "/nonexistent", "{c}", "true"], "/nonexistent"),
        (["--user", "root", "{c}", "true"], "bad uid: "),
        (["--user", "0:root", "{c}", "true"], "bad gid: "),
        (
            ["--user", "", "--additional-gids", "-3", "{c}", "true"],
            "additional-gids must be a positive number -3",
        ),
        (["--cgroup", "..", "{c}", "true"], "bad sub cgroup path: .."),
        (["--cgroup", "nonsense", "{c}", "true"], "o such file or directory"),
        (["--cgroup", "odd:/", "{c}", "true"], "unknown controller odd"),
        (["--cgroup", ":a", "{c}", "true"], "invalid --cgroup argument: :a (empty <controller> prefix)"),
        (["--cgroup", "a", "--cgroup", "b:c", "{c}", "true"], "(missing <controller>: prefix)"),
        (
            ["--cgroup", "cpu:a", "--cgroup", "cpu:b", "{c}", "true"],
            "controller cpu specified multiple times",
        ),
        (["--pidfd-socket", "/nonexistent", "{c}", "true"], "/nonexistent"),
        (["--apparmor", "nonsense", "{c}", "true"], "pparmor"),
        (["--process-label", "nonsense", "{c}", "true"], "selinux"),
    ],
)
def test_what_cannot_be_run_has_exit_code_255(oci: Oci, words: list[str], told: str) -> None:
    name = oci.started()
    done = oci("exec", *(word.replace("{c}", name) for word in words))
    assert done.code == 255
    assert done.error.startswith("exec failed: ")
    assert told.lower() in done.error.lower()
    assert oci.ok("exec", name, "echo", "well") == "well\n"


@pytest.mark.manor_only(reason="runc lets 2^32 wrap around, and takes what Go's Atoi takes")
@pytest.mark.parametrize(
    "user",
    ["-1", "+1", " 1", "1_0", "0x1", "\uff11", "4294967295", "4294967296", "1:", ":1", "0:-1", "1:1:1"],
)
def test_a_user_that_is_no_number_is_never_taken_for_another(oci: Oci, user: str) -> None:
    name = oci.started()
    done = oci("exec", "--user", user, name, "id", "-u")
    assert done.code == 255
    assert re.search("bad [ug]id: ", done.error)


@pytest.mark.parametrize(
    ("user", "told"), [("1000", "1000 0"), ("1000:50", "1000 50"), ("01", "1 0"), ("0", "0 0")]
)
def test_user_sets_uid_and_gid(oci: Oci, user: str, told: str) -> None:
    name = oci.started()
    assert oci.ok("exec", "-u", user, name, "sh", "-c", "echo $(id -u) $(id -g)") == f"{told}\n"


def test_groups_are_added(oci: Oci) -> None:
    name = oci.started(change=lambda config: config["process"]["user"].update(additionalGids=[7]))
    words = ["exec", "--user", "1000:1000", "-g", "100", "-g", "65534", name, "id", "-G"]
    assert oci.ok(*words) == "1000 7 100 65534\n"


def test_home_is_the_users(oci: Oci) -> None:
    name = oci.started()
    home = ("sh", "-c", "echo $HOME")
    assert oci.ok("exec", "--user", "1000", name, *home) == "/home/user\n"
    assert oci.ok("exec", "--user", "2000", name, *home) == "/\n"
    assert oci.ok("exec", "--env", "HOME=/x", name, *home) == "/x\n"


def test_environment_and_directory(oci: Oci) -> None:
    name = oci.started(change=lambda config: config["process"]["env"].append("A=config"))
    said = oci.ok(
        "exec", "-e", "B=1", "-e", "A=exec", "-e", "C=a=b", name, "sh", "-c", "echo $A $B $C $TERM; pwd"
    )
    assert said == "exec 1 a=b xterm\n/\n"
    assert oci.ok("exec", "--cwd", "/bin", name, "pwd") == "/bin\n"


def test_options_of_the_command_are_the_commands(oci: Oci) -> None:
    name = oci.started()
    assert oci.ok("exec", name, "echo", "-d", "--tty", "--", "-p") == "-d --tty -- -p\n"


def _capabilities(text: str) -> dict[str, int]:
    return {kind: int(value, 16) for kind, value in re.findall(r"Cap(\w+):\s*(\w+)", text)}


def test_capabilities_are_the_containers_and_no_more(oci: Oci) -> None:
    name = oci.started()
    status = ("cat", "/proc/self/status")
    init = _capabilities(Path(f"/proc/{oci.state(name)['pid']}/status").read_text())
    own = _capabilities(oci.ok("exec", name, *status))
    assert own == init
    assert own["Inh"] == own["Amb"] == 0
    more = _capabilities(oci.ok("exec", "--cap", "CAP_SYS_ADMIN", "--cap", "CAP_SYSLOG", name, *status))
    added = 1 << 21 | 1 << 34
    for kind in ("Prm", "Eff", "Bnd"):
        assert more[kind] == own[kind] | added
    assert more["Inh"] == more["Amb"] == 0


def test_a_capability_is_ambient_where_the_config_has_inheritable_ones(oci: Oci) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["capabilities"].update(
            inheritable=["CAP_CHOWN", "CAP_SYSLOG"],
            ambient=["CAP_CHOWN"],
            bounding=["CAP_CHOWN", "CAP_SYSLOG"],
            permitted=["CAP_CHOWN"],
            effective=["CAP_CHOWN"],
        )

    name = oci.started(change=change)
    found = _capabilities(oci.ok("exec", "--cap", "CAP_SYSLOG", name, "cat", "/proc/self/status"))
    assert found["Amb"] == found["Prm"] == found["Eff"] == 1 | 1 << 34


@pytest.mark.parametrize("value", [True, False])
def test_no_new_privileges_can_be_chosen(oci: Oci, value: bool) -> None:
    name = oci.started(change=lambda config: config["process"].update(noNewPrivileges=not value))
    for words, wanted in (([f"--no-new-privs={str(value).lower()}"], value), ([], not value)):
        said = oci.ok("exec", *words, name, "grep", "NoNewPrivs", "/proc/self/status")
        assert said.split()[1] == str(int(wanted))


def test_a_process_file_says_everything(oci: Oci) -> None:
    name = oci.started()
    changes = {
        "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
        "cwd": "/bin",
        "env": ["A=b", "PATH=/bin"],
    }
    file = _process(oci, "sh", "-c", "id -u; id -G; pwd; echo $A", **changes)
    assert oci.ok("exec", "--process", file, name).split("\n") == ["5", "6 7", "/bin", "b", ""]
    # What else is on the command line does not count.
    assert oci.ok("exec", "-p", file, "--user", "9", "--env", "A=c", name, "ignored").split("\n")[0] == "5"


def test_a_process_file_may_be_a_pipe_and_little(oci: Oci) -> None:
    name = oci.started()
    process = {"args": ["/bin/echo", "hello"], "cwd": "/"}
    source, sink = os.pipe()
    os.write(sink, json.dumps(process).encode())
    os.close(sink)
    try:
        assert oci.ok("exec", "-p", f"/dev/fd/{source}", name, pass_fds=(source,)) == "hello\n"
    finally:
        os.close(source)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"args": []}', '{"args": ["x"], "cwd": "y"}', "null"])
def test_a_bad_process_file_is_refused(oci: Oci, text: str) -> None:
    name = oci.started()
    file = oci.directory / "process.json"
    file.write_text(text)
    done = oci("exec", "-p", file, name)
    assert done.code == 255
    assert "\n" not in done.error


def test_a_pid_file_has_the_pid_outside(oci: Oci) -> None:
    name = oci.started()
    place = oci.directory / "place"
    place.mkdir()
    oci.ok("exec", "--pid-file", "pid.txt", name, "true", cwd=place)
    assert int((place / "pid.txt").read_text()) != oci.state(name)["pid"]
    assert stat.S_IMODE((place / "pid.txt").stat().st_mode) == 0o644
    assert os.listdir(place) == ["pid.txt"]


def test_without_its_pid_file_it_is_ended(oci: Oci) -> None:
    name = oci.started()
    lived = oci.directory / name / "rootfs/tmp/lived"
    words = ("sh", "-c", "until [ -e /tmp/go ]; do sleep 0.01; done; touch /tmp/lived")
    assert oci("exec", "-d", "--pid-file", "/nonexistent/pid", name, *words).code == 255
    (lived.parent / "go").touch()
    time.sleep(0.5)
    assert not lived.exists()


def test_a_paused_container_is_refused(oci: Oci) -> None:
    name = oci.started()
    oci.ok("pause", name)
    done = oci("exec", name, "true")
    assert done.code == 255
    assert done.error == "exec failed: cannot exec in a paused container (use --ignore-paused to override)"
    oci.ok("resume", name)


def test_an_exec_may_wait_for_a_paused_container(oci: Oci) -> None:
    name = oci.started()
    oci.ok("pause", name)
    running = oci.begin("exec", "--ignore-paused", name, "echo", "at last")
    time.sleep(0.5)
    assert running.poll() is None
    oci.ok("resume", name)
    out, _err = running.communicate(timeout=60)
    assert out == b"at last\n"


def test_a_stopped_container_is_refused(oci: Oci) -> None:
    name = oci.stopped()
    done = oci("exec", name, "true")
    assert done.code == 255
    assert done.error == "exec failed: cannot exec in a stopped container"


def test_it_is_in_the_containers_cgroups(oci: Oci) -> None:
    name = oci.started()
    init = Path(f"/proc/{oci.state(name)['pid']}/cgroup").read_text()
    pid_file = oci.directory / "pid"
    running = oci.begin("exec", "--pid-file", pid_file, name, "sleep", "5")
    deadline = time.monotonic() + 60
    while not pid_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path(f"/proc/{pid_file.read_text()}/cgroup").read_text() == init
    running.send_signal(signal.SIGKILL)


def test_it_can_join_a_cgroup_below(oci: Oci) -> None:
    name = oci.started()
    place = next(path for path in cgroup_directories(name) if (path / "pids.max").exists())
    (place / "sub").mkdir()
    pid_file = oci.directory / "pid"
    oci.ok("exec", "--detach", "--cgroup", "pids:sub", "--pid-file", pid_file, name, "sleep", "1000")
    assert (place / "sub/cgroup.procs").read_text().split() == [pid_file.read_text()]
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")
    remove_cgroup(place / "sub")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_forwarded(oci: Oci, number: signal.Signals) -> None:
    name = oci.started()
    script = f"trap 'echo got; exit 7' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    running = oci.begin("exec", name, "sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(number)
    assert running.stdout.readline() == b"got\n"
    assert running.wait(60) == 7


def test_output_of_what_it_leaves_behind_is_waited_for(oci: Oci) -> None:
    name = oci.started()
    assert oci.ok("exec", name, "sh", "-c", "(sleep 0.5; echo late) & exit 0") == "late\n"


def test_an_exec_ends_with_its_container(oci: Oci) -> None:
    name = oci.started()
    running = oci.begin("exec", name, "sh", "-c", "echo up; sleep 1000")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    oci.ok("kill", name, "KILL")
    assert running.wait(60) == 137


def test_many_at_once(oci: Oci) -> None:
    name = oci.started()
    running = [oci.begin("exec", name, "sh", "-c", f"echo {number}; exit {number}") for number in range(8)]
    for number, each in enumerate(running):
        out, _err = each.communicate(timeout=60)
        assert (each.returncode, out) == (number, f"{number}\n".encode())


def test_the_interpreter_cannot_be_reached_from_inside(oci: Oci) -> None:
    """CVE-2019-5736: a program that is the runtime's own executable, as seen from the container."""
    bundle = oci.bundle()
    (bundle.rootfs / "bin/trap").write_text("#!/proc/self/exe\n")
    (bundle.rootfs / "bin/trap").chmod(0o755)
    name = bundle.path.name
    oci.ok("run", "-d", "-b", bundle.path, name)
    # Whatever opens the executable of a process that is being started, for writing, gets an error.
    grab = (
        "i=0; while [ $i -lt 2000 ]; do for p in /proc/[0-9]*; do l=$(readlink $p/exe) && case $l in "
        "*busybox) ;; *) echo $l; : >> $p/exe && echo WRITTEN;; esac; done; i=$((i+1)); done"
    )
    watcher = oci.begin("exec", "--cap", "CAP_SYS_PTRACE", name, "sh", "-c", grab)
    for _time in range(10):
        oci("exec", name, "/bin/trap")
    watcher.send_signal(signal.SIGKILL)
    out, _err = watcher.communicate(timeout=60)
    assert b"WRITTEN" not in out
    for line in set(out.decode().split("\n")) - {""}:
        assert line.startswith(("/memfd:", "/runc", "(", "/proc/self/exe")) or "deleted" in line, line


def test_closed_standard_streams_are_no_trap(oci: Oci) -> None:
    name = oci.started()
    words = " ".join(oci.words("exec", name, "sh", "-c", "'echo here; touch /tmp/done'"))
    done = subprocess.run(
        ["sh", "-c", f"exec {words} <&- >&- 2>&-"], env=oci.environment(), timeout=60, check=False
    )
    assert done.returncode == 0
    assert (oci.directory / name / "rootfs/tmp/done").exists()
