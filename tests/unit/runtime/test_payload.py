"""The working directory, the program and its environment, looked up in a root that is not to be trusted."""

from __future__ import annotations

import os
import signal
import stat
from typing import TYPE_CHECKING, Any

import pytest

from runtime import payload
from runtime.errors import ConfigError, ManorError
from runtime.payload import CommandError, find_program, home_of, prepare_environment
from tests.unit.runtime.forked import enter_user_namespace, in_child, needs_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# ---- the environment ---------------------------------------------------------------------------


def environment(*entries: str) -> list[str]:
    got = prepare_environment(entries, lambda: b"/home/of/user")
    return [f"{name.decode()}={value.decode()}" for name, value in got.items()]


def test_entries_keep_their_order_and_the_last_of_a_name_counts() -> None:
    assert environment("A=1", "HOME=/h", "A=2", "B=x=y", "C=") == ["HOME=/h", "A=2", "B=x=y", "C="]


@pytest.mark.parametrize("entries", [(), ("HOME=",), ("HOME=/x", "HOME=")])
def test_home_is_added_where_it_is_missing_or_empty(entries: tuple[str, ...]) -> None:
    assert environment(*entries) == ["HOME=/home/of/user"]


def test_a_home_that_is_given_is_not_looked_up() -> None:
    def never() -> bytes:
        raise AssertionError

    assert prepare_environment(("HOME=/",), never) == {b"HOME": b"/"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("SECRET", "missing '='"),
        ("", "missing '='"),
        ("=x", "name cannot be empty"),
        ("A=b\0c", "contains a NUL"),
    ],
)
def test_what_is_no_variable_names_its_place(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"process\.env\[1\]: invalid environment variable: {message}"):
        environment("A=1", entry)


PASSWD = b"""root:x:0:0:root:/root:/bin/sh
short:x:7
word:x:seven:7::/seven:
nul:x:8:8::/h\0me:
empty:x:9:9:::
user:x:1000:1000:A User:/home/user:/bin/sh
again:x:1000:1000::/never:
"""


@pytest.mark.parametrize(
    ("uid", "home"),
    [(0, b"/root"), (1000, b"/home/user"), (7, b"/"), (8, b"/"), (9, b"/"), (5, b"/"), (100, b"/")],
)
def test_home_directories_of_a_passwd_file(uid: int, home: bytes) -> None:
    assert home_of(uid, PASSWD) == home


def test_no_passwd_file_means_the_root_directory() -> None:
    assert home_of(0, b"") == b"/"


def in_root(prepare: Callable[[Path], Any], work: Callable[[], Any], tmp_path: Path) -> Any:
    """`work` in a child with `tmp_path` as its root directory."""
    prepare(tmp_path)

    def child() -> Any:
        enter_user_namespace()
        os.chroot(tmp_path)
        os.chdir("/")
        return work()

    return in_child(child)


def make_fifo(root: Path) -> None:
    (root / "etc").mkdir()
    os.mkfifo(root / "etc" / "passwd")


def make_huge(root: Path) -> None:
    (root / "etc").mkdir()
    with open(root / "etc" / "passwd", "wb") as stream:
        stream.write(b"root:x:0:0::/root:\n")
        stream.truncate(1 << 40)


def make_directory(root: Path) -> None:
    (root / "etc" / "passwd").mkdir(parents=True)


def make_loop(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "passwd").symlink_to("passwd")


@needs_user_namespaces
@pytest.mark.parametrize("make", [make_fifo, make_huge, make_directory, make_loop, lambda _root: None])
def test_whatever_the_image_has_for_a_passwd_file_nothing_blocks(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    def read() -> str:
        signal.alarm(30)  # this is a process of its own
        return payload._read_passwd().decode()

    assert in_root(make, read, tmp_path) == ""


@needs_user_namespaces
def test_a_passwd_file_behind_a_symlink_of_the_image_is_read_inside_it(tmp_path: Path) -> None:
    def make(root: Path) -> None:
        (root / "etc").mkdir()
        (root / "users").write_bytes(PASSWD)
        (root / "etc" / "passwd").symlink_to("/users")

    assert in_root(make, lambda: payload._read_passwd().decode(), tmp_path) == PASSWD.decode()


# ---- the program's file ------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, mode in (("one/tool", 0o755), ("two/tool", 0o755), ("one/data", 0o644), ("two/data", 0o755)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    (tmp_path / "one" / "folder").mkdir()
    return tmp_path


def search(programs: Path, name: str) -> str:
    path = f"{programs}/none:{programs}/one:{programs}/two"
    return find_program(name, path.encode()).decode().removeprefix(f"{programs}/")


def test_the_first_executable_file_in_path_is_taken(programs: Path) -> None:
    assert search(programs, "tool") == "one/tool"
    assert search(programs, "data") == "two/data"


@pytest.mark.parametrize("name", ["missing", "folder", "", ".", ".."])
def test_a_command_that_is_not_in_path_is_told_as_runc_tells_it(programs: Path, name: str) -> None:
    with pytest.raises(CommandError) as failure:
        search(programs, name)
    assert str(failure.value) == f'exec: "{name}": executable file not found in $PATH'
    assert failure.value.exit_code == 127


@pytest.mark.parametrize("path", [b"", b"/no/where"])
def test_without_a_path_nothing_is_searched(path: bytes) -> None:
    with pytest.raises(CommandError, match="not found in"):
        find_program("sh", path)


def test_a_path_with_a_slash_is_taken_as_it_is(programs: Path) -> None:
    assert find_program(f"{programs}/one/tool", b"") == f"{programs}/one/tool".encode()


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("none/tool", "stat {}: no such file or directory", 127),
        ("one/tool/x", "stat {}: not a directory", 127),
        ("one/folder", "is a directory", 126),
        ("one/data", "permission denied", 126),
    ],
)
def test_a_path_that_cannot_be_run_is_told_as_runc_tells_it(
    programs: Path, name: str, message: str, code: int
) -> None:
    path = f"{programs}/{name}"
    with pytest.raises(CommandError) as failure:
        find_program(path, b"")
    assert str(failure.value) == f'exec: "{path}": {message.format(path)}'
    assert failure.value.exit_code == code


@pytest.mark.parametrize("element", ["", ".", "one/../one"])
def test_a_program_of_the_working_directory_is_not_found_by_accident(
    programs: Path, element: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(programs / "one" if element in ("", ".") else programs)
    with pytest.raises(
        CommandError, match='exec: "tool": cannot run executable found relative to current directory'
    ):
        find_program("tool", f"/no/where:{element}".encode())


def test_names_that_would_disturb_a_log_are_made_printable() -> None:
    with pytest.raises(CommandError, match=r'exec: "a\?b\?é": executable'):
        find_program("a\nb\x1bé", b"/bin")


def test_execute_runs_the_program_with_exactly_its_arguments_and_environment() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        args = (
            "sh",
            "-c",
            'echo "$0,$1,$A,$HOME"',
            "zero",
            "one\xff".encode("latin-1").decode("utf-8", "surrogateescape"),
        )
        payload.execute(payload.prepare(args, ("A=b", "PATH=/bin:/usr/bin", "HOME=/h")))
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"zero,one\xff,b,/h\n"
    os.close(reader)


def test_a_file_the_kernel_cannot_execute_is_told_as_runc_tells_it(programs: Path) -> None:
    file = programs / "one" / "tool"
    file.write_bytes(b"\0\1\2\3")
    with pytest.raises(CommandError, match=f"exec {file}: exec format error"):
        payload.execute(payload.prepare((str(file),), ("HOME=/",)))


# ---- the working directory ---------------------------------------------------------------------


def test_the_working_directory_is_entered(tmp_path: Path) -> None:
    assert in_child(lambda: [payload.enter_cwd(str(tmp_path)), os.getcwd()][1]) == str(tmp_path)  # type: ignore[func-returns-value]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_working_directory_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="openat2") as failure:
        payload.enter_cwd(str(tmp_path / name))
    assert failure.value.filename == str(tmp_path / name)


@pytest.mark.parametrize("process", ["self", "thread-self", "1"])
def test_a_descriptor_of_the_runtime_is_no_working_directory(process: str) -> None:
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        owner = os.getpid() if process == "1" else process
        for path in (f"/proc/{owner}/fd/{fd}", f"/proc/{owner}/cwd", f"/proc/{owner}/fd/{fd}/etc"):
            with pytest.raises(OSError, match="openat2: Too many levels of symbolic links"):
                payload.enter_cwd(path)
    finally:
        os.close(fd)


@needs_user_namespaces
def test_a_working_directory_outside_of_the_root_is_a_breakout(tmp_path: Path) -> None:
    def work() -> str:
        enter_user_namespace()
        os.chdir("/")
        os.chroot(tmp_path)
        try:
            payload.verify_cwd()
        except ManorError as error:
            return str(error)
        return "inside"

    assert "outside of container mount namespace root" in in_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="root may enter everything, nobody else")
def test_a_directory_only_the_user_may_enter_is_left_for_later(tmp_path: Path) -> None:
    def work() -> list[bool]:
        os.seteuid(1000)
        return [payload.try_enter_cwd("/root"), payload.try_enter_cwd("/")]

    assert stat.S_IMODE(os.stat("/root").st_mode) & 0o001 == 0
    assert in_child(work) == [False, True]


def test_descriptors_of_the_runtime_do_not_survive_execve() -> None:
    def work() -> list[bool]:
        os.dup2(1, 3, inheritable=True)
        os.dup2(1, 4, inheritable=True)
        payload.close_on_exec(preserved=1)
        return [os.get_inheritable(fd) for fd in (2, 3, 4)]

    assert in_child(work) == [True, True, False]
