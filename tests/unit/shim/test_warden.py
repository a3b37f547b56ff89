"""The warden and what comes out of it, as launchers see them: real processes, and a daemon that tells about itself."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim import install, warden
from tests.unit.shim.installed import (
    DAEMON,
    Manor,
    alive,
    as_python,
    make_code,
    own_shim,
    parent,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE_SHIM_KB = 6 << 10


@pytest.fixture
def manor(tmp_path: Path) -> Iterator[Manor]:
    made = Manor(tmp_path, make_code(tmp_path / "code"))
    yield made
    made.end()


def test_every_shim_comes_from_one_warden(manor: Manor) -> None:
    first, second = manor.say(), manor.say()
    assert first["pid"] != second["pid"]
    assert [first["parent"], second["parent"]] == manor.wardens() * 2


def test_launchers_that_come_at_once_start_one_warden(manor: Manor) -> None:
    with ThreadPoolExecutor(8) as pool:
        facts = list(pool.map(lambda _number: manor.say(), range(8)))
    assert {each["alone_because"] for each in facts} == {""}
    assert [each["parent"] for each in facts] == manor.wardens() * 8


def test_arguments_and_environment_arrive_as_they_were_given(manor: Manor) -> None:
    environ = {**manor.environ, "EMPTY": "", "TEXT": "ä\n\udcff=", "PYTHONPATH": "/nowhere"}
    done = manor.run("say", "", "-id", b"\xff\xc3\xa4".decode(errors="surrogateescape"), env=environ)
    facts = eval(done.stdout)
    assert facts["argv"] == (str(manor.launcher), "say", "", "-id", "\udcffä")
    assert facts["environ"] == environ  # and no LC_CTYPE, which Python adds to its own
    assert facts["os.environ"] == {}


def test_memory_that_a_shim_has_freed_is_not_kept_apart_by_its_size(manor: Manor) -> None:
    kept = manor.say()["kept_apart"]
    assert kept is None or kept < 16 << 10  # and 164 KB of seven blocks of each size


def test_a_request_may_be_larger_than_a_message(manor: Manor) -> None:
    environ = manor.environ | {f"V{number}": f"{number}" * 100_000 for number in range(10)}
    manor.say()  # the warden's environment is not to be what is compared
    assert manor.say(env=environ)["environ"] == environ


def test_an_answer_may_be_larger_than_a_message(manor: Manor) -> None:
    data = os.urandom(10 << 20)
    done = manor.run("stdin", input=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (7, True, b"on stderr")


def test_more_stdin_than_containerd_sends_is_an_error(manor: Manor) -> None:
    done = manor.run("stdin", input=bytes((10 << 20) + 1))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"containerd-shim-manor-v2: stdin holds more than 10485760 bytes\n"


def test_a_launcher_without_stdin_is_served(manor: Manor) -> None:
    for number in range(2):  # the first finds no warden
        done = manor.run("stdin", before=["sh", "-c", 'exec "$@" <&-', "sh"])
        assert (number, done.returncode, done.stdout, done.stderr) == (number, 7, b"", b"on stderr")


def test_a_shim_is_a_process_of_its_own(manor: Manor) -> None:
    facts = manor.say()
    assert facts["session"] == facts["pid"]
    assert facts["cwd"] == "/"
    assert facts["wakeup_fd"] == -1
    assert facts["signals"] == [["SigBlk:", "0000000000000000"], ["SigCgt:", "0000000000000000"]]


def test_no_descriptor_of_anybody_reaches_warden_or_shim(manor: Manor) -> None:
    leaked, other_end = os.pipe()
    os.dup2(leaked, 251, inheritable=True)
    try:
        facts = manor.say(pass_fds=(251,))
        pipe = os.readlink("/proc/self/fd/251")
        assert pipe not in facts["fds"].values()
        assert [facts["fds"][fd] for fd in "012"] == ["/dev/null"] * 3
        assert sorted(kind.partition(":")[0] for fd, kind in facts["fds"].items() if int(fd) > 2) == [
            "gone",
            "socket",
        ]
    finally:
        for fd in (leaked, other_end, 251):
            os.close(fd)
    if os.geteuid() == 0:  # nobody else may look at a process that is not dumpable
        (warden,) = manor.wardens()
        theirs = {os.readlink(f"/proc/{warden}/fd/{fd}") for fd in os.listdir(f"/proc/{warden}/fd")}
        assert pipe not in theirs


def test_the_output_of_start_ends_while_the_shim_lives(manor: Manor) -> None:
    # For the first request, which starts the warden, as well as for one that finds it.
    for number in range(2):
        done = manor.run("start", "-id", f"{manor.name}-{number}")  # returns when both pipes have ended
        assert (done.stdout, done.stderr) == (b"unix:///address", b"")
    assert len(manor.shims()) == 2


def test_a_shim_shows_what_operators_look_for(manor: Manor) -> None:
    id_ = f"{manor.name}-0"
    arguments = [
        "-namespace",
        "k8s.io",
        "-address",
        "/run/c.sock",
        "-publish-binary",
        "/usr/bin/c",
        "-id",
        id_,
    ]
    manor.run("start", *arguments)
    (pid,) = manor.shims()
    shown = ["containerd-shim-manor-v2", "-namespace", "k8s.io", "-address", "/run/c.sock", "-id", id_, ""]
    assert Path(f"/proc/{pid}/cmdline").read_text().split("\0") == shown
    assert Path(f"/proc/{pid}/comm").read_text() == "manor-shim\n"
    (warden,) = manor.wardens()
    assert Path(f"/proc/{warden}/comm").read_text() == "manor-warden\n"


def test_a_client_that_says_nothing_keeps_nobody_waiting(manor: Manor) -> None:
    manor.run("-v")
    (name,) = manor.sockets()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        manor.connect(silent, name)
        assert manor.run("-v").stdout == b"1\n"
        wait_for(lambda: len(children(manor.wardens()[0])) == 1)
    wait_for(lambda: not children(manor.wardens()[0]))


def test_a_client_that_talks_nonsense_gets_no_answer(manor: Manor) -> None:
    manor.run("-v")
    (name,) = manor.sockets()
    for message in (b".", b".x\0", b".-1\0", b".9\0a\0", b"?", b"." + b"1\0say\0\0A=1\0"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            manor.connect(client, name)
            client.send(message)
            assert client.recv(1000) == b""
    wait_for(lambda: not children(manor.wardens()[0]))


def test_ended_shims_are_reaped(manor: Manor) -> None:
    for _number in range(3):
        manor.run("-v")
    (warden,) = manor.wardens()
    wait_for(lambda: not children(warden))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_second_warden_gives_way(manor: Manor) -> None:
    manor.run("-v")
    (warden,) = manor.wardens()
    (socket_name,) = manor.sockets()
    name, code = socket_name.removesuffix(".sock"), str(manor.directory / "code")
    source = f"""
from shim import launcher
launcher.CODE, launcher.DAEMON = {code!r}, "answering"
launcher.start_warden({str(manor.run_dir)!r}, {name!r})
"""
    done = subprocess.run(as_python(source), capture_output=True, text=True, check=False)
    assert f"NoWarden: the warden ended: another warden holds {name}.lock" in done.stderr
    assert manor.say()["parent"] == warden


def test_a_killed_warden_leaves_its_shims_and_is_replaced(manor: Manor) -> None:
    shim = manor.start()
    (warden,) = manor.wardens()
    os.kill(warden, signal.SIGKILL)
    wait_for(lambda: not alive(warden))
    assert len(manor.sockets()) == 1  # stale
    facts = manor.say()
    assert facts["alone_because"] == ""
    assert facts["parent"] == manor.wardens()[0] != warden
    assert alive(shim)


def test_a_warden_that_is_told_to_stop_leaves_nothing_but_its_shims(manor: Manor) -> None:
    shim = manor.start()
    (warden,) = manor.wardens()
    os.kill(warden, signal.SIGTERM)
    wait_for(lambda: not alive(warden))
    assert list(manor.run_dir.iterdir()) == []
    assert alive(shim)


def test_a_signal_for_a_shim_does_not_stop_the_warden(manor: Manor) -> None:
    shim = manor.start()
    (warden,) = manor.wardens()
    os.kill(shim, signal.SIGTERM)
    wait_for(lambda: not alive(shim))
    assert manor.say()["parent"] == warden


def test_an_idle_warden_ends_when_its_last_shim_has(tmp_path: Path) -> None:
    hurry = "import shim.warden\nshim.warden.IDLE_S = 0.2\n"
    manor = Manor(tmp_path, make_code(tmp_path / "code", DAEMON + hurry))
    try:
        shim = manor.start()
        (warden,) = manor.wardens()
        with pytest.raises(AssertionError):
            wait_for(lambda: not alive(warden), timeout_s=0.6)
        os.kill(shim, signal.SIGKILL)
        wait_for(lambda: not alive(warden))
        assert list(manor.run_dir.iterdir()) == []
    finally:
        manor.end()


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[tuple[Manor, int, Manor, int]]:
    """A node whose Manor was replaced while a shim lived, and the one that replaced it; a shim of each.

    Their wardens are soon idle.
    """
    hurry = "import shim.warden\nshim.warden.IDLE_S = 0.2\n"
    old = Manor(tmp_path, make_code(tmp_path / "old", DAEMON + hurry))
    shim = old.start()
    shutil.rmtree(tmp_path / "old")
    new = copy.copy(old)
    new.launcher = install.write_launcher(tmp_path, make_code(tmp_path / "new", DAEMON + hurry), "answering")
    try:
        yield old, shim, new, new.start()
    finally:
        new.end()


def test_a_warden_with_a_successor_ends_while_its_shims_live_on(
    upgraded: tuple[Manor, int, Manor, int],
) -> None:
    _old, shim, new, later_shim = upgraded
    before, after = parent(shim), parent(later_shim)
    assert before != after
    wait_for(lambda: new.wardens() == [after])
    assert alive(shim)
    assert len(new.sockets()) == 1
    with pytest.raises(AssertionError):  # it has no successor, and a shim
        wait_for(lambda: not alive(after), timeout_s=0.6)


def test_a_warden_is_no_successor_of_one_with_another_key(
    manor: Manor, monkeypatch: pytest.MonkeyPatch
) -> None:
    manor.run("-v")
    (socket_name,) = manor.sockets()
    (manor.run_dir / ("warden-" + "0" * 16 + socket_name[len("warden-") + 16 :])).touch()
    (manor.run_dir / socket_name.replace(".sock", ".lock")).touch()
    monkeypatch.chdir(manor.run_dir)
    assert not warden._succeeded(socket_name.removesuffix(".sock"))
    later = manor.run_dir / (socket_name[: len("warden-") + 17] + "0" * 8 + ".sock")
    later.touch()
    os.utime(later, (1, 1))  # it was there before us: we are its successor
    assert not warden._succeeded(socket_name.removesuffix(".sock"))
    later.touch()
    assert warden._succeeded(socket_name.removesuffix(".sock"))


def test_code_that_is_not_the_launchers_makes_no_warden_that_goes_by_its_name(tmp_path: Path) -> None:
    """An upgrade that is half done, or a checkout that was edited: the next shim is of what there is, and alone."""
    code = make_code(tmp_path / "code")
    own_shim(code)
    manor = Manor(tmp_path, code)
    try:
        with open(code / "shim" / "warden.py", "a", encoding="utf-8") as file:
            file.write("\n")
        assert "is not what this launcher was written for: install again" in manor.say()["alone_because"]
        assert (manor.wardens(), manor.sockets()) == ([], [])
        manor.launcher = install.write_launcher(tmp_path, code, "answering")
        assert manor.say()["alone_because"] == ""
    finally:
        manor.end()


def test_a_daemon_that_fails_is_an_error_on_stderr(manor: Manor) -> None:
    done = manor.run("crash")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"containerd-shim-manor-v2: RuntimeError: cannot do that\n"


def test_a_daemon_that_dies_is_an_error_and_is_not_tried_again(manor: Manor) -> None:
    done = manor.run("die")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"containerd-shim-manor-v2: the shim died before it had answered\n"


def test_what_a_shim_has_made_that_dies_in_its_start_is_deleted(manor: Manor) -> None:
    """Once, and in silence: what is printed is what went wrong."""
    deleted = manor.directory / "deleted"
    done = manor.run("die", str(deleted), "start")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"containerd-shim-manor-v2: the shim died before it had answered\n"
    assert deleted.exists()


def test_code_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    manor = Manor(tmp_path, make_code(tmp_path / "code", "import no_such_module"))
    try:
        done = manor.run("-v")
        assert done.returncode == 1
        assert (
            b"no warden (the warden ended: ModuleNotFoundError: No module named 'no_such_module')"
            in done.stderr
        )
        assert b"no shim (ModuleNotFoundError: No module named 'no_such_module')" in done.stderr
        assert manor.wardens() == []
    finally:
        manor.end()


def test_a_shim_hears_that_its_launcher_was_killed(manor: Manor) -> None:
    manor.run("-v")
    outcome = manor.directory / "outcome"
    launcher = subprocess.Popen(
        [manor.launcher, "slow", outcome], env=manor.environ, stdin=subprocess.DEVNULL
    )
    wait_for(Path(f"{outcome}-begun").exists)
    launcher.kill()
    launcher.wait()
    wait_for(outcome.exists)
    wait_for(lambda: outcome.read_text() == "LauncherGone")


def test_a_shim_is_what_a_child_of_its_launcher_would_be(manor: Manor) -> None:
    manor.say()
    cpu = max(os.sched_getaffinity(0))
    before = ["prlimit", "--nofile=300:500", "--core=0:0", "nice", "-n", "3", "taskset", "-c", str(cpu)]
    command = ["sh", "-c", 'umask 0027; echo 400 > /proc/self/oom_score_adj; exec "$@"', "sh"]
    facts = manor.say(before=[*before, *command])
    assert facts["alone_because"] == ""
    assert facts["parent"] == manor.wardens()[0]
    assert (facts["limits"][7], facts["limits"][4]) == ((300, 500), (0, 0))
    assert (facts["nice"], facts["cpus"], facts["umask"]) == (os.nice(0) + 3, [cpu], "0027")
    if os.geteuid() == 0:  # nobody else may write to the files of a process that is not dumpable
        assert facts["oom_score"] == 401


def test_a_limit_that_the_warden_cannot_raise_is_had_without_it(manor: Manor) -> None:
    # The warden comes from a launcher with less. With CAP_SYS_RESOURCE its child can raise the limit again.
    manor.run("-v", before=["prlimit", "--nofile=200:200"])
    facts = manor.say(before=["prlimit", "--nofile=400:400"])
    assert facts["limits"][7] == (400, 400)
    if facts["alone_because"]:
        assert "adopt" in facts["alone_because"]
        assert facts["parent"] not in manor.wardens()


def test_a_shim_loads_no_more_than_it_needs_and_is_small(manor: Manor) -> None:
    facts = manor.say()
    heavy = {
        "typing",
        "dataclasses",
        "re",
        "enum",
        "json",
        "socket",
        "selectors",
        "signal",
        "subprocess",
        "logging",
    }
    heavy |= {"traceback", "contextlib", "pathlib", "collections", "functools", "asyncio", "inspect", "site"}
    assert heavy & set(facts["modules"]) == set()
    assert facts["anonymous_kb"] <= IDLE_SHIM_KB


def test_only_the_same_user_is_served(manor: Manor) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    manor.run("-v")
    (name,) = manor.sockets()
    for directory in (manor.run_dir, *list(manor.run_dir.parents)[:3]):
        directory.chmod(0o711)
    (manor.run_dir / name).chmod(0o777)
    assert answer_to(0, str(manor.run_dir / name)) != b""
    assert answer_to(65534, str(manor.run_dir / name)) == b""


def answer_to(uid: int, address: str) -> bytes:
    """What the user `uid` reads from the warden; a child of ours asks, who need not execute anything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(address)
                os.write(writer, b"connected")
                here = os.open("/", os.O_PATH)
                socket.send_fds(client, [b".1\0-v\0\0"], [here, here])
                os.write(writer, client.recv(100))
        except OSError:
            pass
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    assert said.startswith(b"connected")
    return said.removeprefix(b"connected")


def test_where_nothing_can_be_executed_the_launchers_child_is_the_shim(manor: Manor) -> None:
    source = f"""
import os
from shim import launcher
def execve(*_arguments):
    raise OSError(12, "Cannot allocate memory")
os.execve = execve
launcher.CODE, launcher.DAEMON = {str(manor.directory / "code")!r}, "answering"
sys.argv = ["shim", "say"]
here, null = os.open("/", os.O_PATH), os.open("/dev/null", os.O_RDONLY)
sys.exit(launcher.ask(launcher.fork_manor("alone"), launcher.request("because"), (here, null), 30))
"""
    done = subprocess.run(as_python(source), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = eval(done.stdout)
    assert facts["alone_because"] == "because"
    assert facts["seal"] == "not sealed: not executed from a sealed copy"
    assert facts["session"] == facts["pid"]
