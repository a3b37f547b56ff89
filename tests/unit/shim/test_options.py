"""A handler's options: both types, the table as text and in a file, what counts when they come twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument, ManorError, Unsupported
from shim.api.message import Message
from shim.api.options import Options, RuntimeOptions
from shim.api.types import Any, Empty, pack
from shim.options import CONTAINER, LEAF, Handler, options_of, read_handler, unheeded


def generic(body: str) -> Any:
    return pack(RuntimeOptions(config_body=body.encode()))


ALL = Options(
    no_pivot_root=True,
    no_new_keyring=True,
    shim_cgroup="/shims",
    io_uid=1000,
    io_gid=1001,
    binary_name="runc",
    root="/run/other",
    systemd_cgroup=True,
    task_api_address="unix:///x",
    task_api_version=3,
)
ALL_AS_TEXT = """
NoPivotRoot = true
NoNewKeyring = true
ShimCgroup = "/shims"
IoUid = 1000
IoGid = 1001
BinaryName = "runc"
Root = "/run/other"
SystemdCgroup = true
TaskApiAddress = "unix:///x"
TaskApiVersion = 3
"""


def test_both_types_say_the_same() -> None:
    assert read_handler(pack(ALL)) == Handler(ALL)
    assert read_handler(generic(ALL_AS_TEXT)) == Handler(ALL)
    assert read_handler(generic(ALL_AS_TEXT.lower())) == Handler(ALL)


@pytest.mark.parametrize("packed", [None, Any(), pack(RuntimeOptions()), pack(Options())])
def test_nothing_said_is_nothing_changed(packed: Any | None) -> None:
    assert read_handler(packed) == Handler()


def test_the_host_part_of_a_type_is_no_matter() -> None:
    packed = Any("type.googleapis.com/containerd.runc.v1.Options", pack(ALL).value)
    assert read_handler(packed).options == ALL


def test_keys_of_the_generic_type_itself_may_stand_in_its_text() -> None:
    packed = pack(
        RuntimeOptions(
            type_url="containerd.runc.v1.Options",
            config_body=b"TypeUrl = 'containerd.runc.v1.Options'\nIoUid = 3",
        )
    )
    assert read_handler(packed).options == Options(io_uid=3)


@pytest.mark.parametrize(
    ("packed", "complaint"),
    [
        (pack(Empty()), "type 'google.protobuf.Empty' are not known: containerd.runc.v1.Options or"),
        (pack(RuntimeOptions(type_url="runsc.Options")), "TypeUrl 'runsc.Options' is not known"),
        (Any(Options.NAME, b"\xff"), "runtime options: "),
        (generic("SystemdCgroups = true"), "there is no option SystemdCgroups"),
        (generic("SystemdCgroup = 'true'"), "SystemdCgroup is true or false, not 'true'"),
        (generic("ExecCgroup = 'own'"), "ExecCgroup is 'leaf' or 'container', not 'own'"),
        (generic("ExecCgroup = true"), "ExecCgroup is 'leaf' or 'container', not True"),
        (generic("ExecCgroup = 'leaf'\nexeccgroup = 'leaf'"), "there twice"),
        (generic("IoUid = true"), "IoUid is a number"),
        (generic("IoUid = -1"), "IoUid -1 is no id"),
        (generic("IoGid = 4294967295"), "IoGid 4294967295 is no id"),
        (generic("Root = 1"), "Root is a text"),
        (generic("root = '/a'\nRoot = '/a'"), "Root is there twice"),
        (generic("Root = 'run'"), "Root 'run' is not absolute"),
        (generic("a = ["), "runtime options in the handler's table: line 1"),
        (pack(RuntimeOptions(config_path="options.toml")), "is not absolute"),
    ],
)
def test_what_cannot_be_done_as_said_is_refused_by_name(packed: Any, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        read_handler(packed)


@pytest.mark.parametrize("message", [Options(criu_image_path="/x"), Options(criu_work_path="/x")])
def test_checkpoints_are_refused_by_the_name_of_the_option(message: Message) -> None:
    with pytest.raises(Unsupported, match="Criu(Image|Work)Path '/x'"):
        read_handler(pack(message))
    with pytest.raises(Unsupported):
        options_of(pack(message), Handler())


def test_another_program_than_this_is_not_run_and_that_is_said() -> None:
    assert unheeded(Options(systemd_cgroup=True)) == ()
    (line,) = unheeded(ALL)
    assert "BinaryName 'runc' is ignored" in line


# ---- a file --------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "options.toml"
    path.write_text("SystemdCgroup = true\n")
    path.chmod(0o644)
    return path


def named(path: Path) -> Any:
    return pack(RuntimeOptions(config_path=str(path)))


def test_a_file_is_read_at_the_start_and_never_again(file: Path) -> None:
    handler = read_handler(named(file))
    assert handler == Handler(Options(systemd_cgroup=True), str(file))
    file.unlink()
    assert options_of(named(file), handler) == handler
    with pytest.raises(InvalidArgument, match="with which the pod's shim was started"):
        options_of(named(file), Handler())


@pytest.mark.parametrize("owner", [0, os.geteuid(), 4242])
def test_a_file_is_roots_or_our_own(file: Path, monkeypatch: pytest.MonkeyPatch, owner: int) -> None:
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((*real(fd)[:4], owner, *real(fd)[5:])))
    if owner == 4242:
        with pytest.raises(InvalidArgument, match="others than us may write"):
            read_handler(named(file))
    else:
        assert read_handler(named(file)).options.systemd_cgroup


def test_a_file_that_others_could_have_written_is_refused(file: Path, tmp_path: Path) -> None:
    file.chmod(0o666)
    with pytest.raises(InvalidArgument, match="others than us may write"):
        read_handler(named(file))
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(InvalidArgument, match="no regular file"):
            read_handler(named(path))
    with pytest.raises(InvalidArgument, match="missing: No such file"):
        read_handler(named(tmp_path / "missing"))


def test_a_file_without_end_is_not_read_to_its_end(file: Path) -> None:
    os.truncate(file, 1 << 30)
    with pytest.raises(InvalidArgument, match="bytes of options"):
        read_handler(named(file))


# ---- twice ---------------------------------------------------------------------------------------


def test_a_create_adds_to_what_the_start_was_given() -> None:
    """containerd 2.x sends the owner of a user-namespaced container's streams as runc's options, and those alone."""
    handler = read_handler(generic("SystemdCgroup = true\nIoGid = 5"))
    both = options_of(pack(Options(io_uid=7, io_gid=8)), handler)
    assert both.options == Options(systemd_cgroup=True, io_uid=7, io_gid=8)
    assert options_of(None, handler) == handler
    assert options_of(generic(""), handler) == handler


def test_where_execs_go_is_said_by_a_create_or_else_by_the_start() -> None:
    handler = read_handler(generic("execcgroup = 'container'\nIoGid = 5"))
    assert handler == Handler(Options(io_gid=5), "", CONTAINER)
    assert options_of(None, handler).exec_cgroup == CONTAINER
    assert options_of(pack(Options(io_uid=7)), handler).exec_cgroup == CONTAINER
    assert options_of(generic("ExecCgroup = 'leaf'"), handler).exec_cgroup == LEAF
    assert options_of(generic("IoUid = 3"), read_handler(None)).exec_cgroup == ""


def test_a_create_is_checked_as_a_start_is() -> None:
    with pytest.raises(ManorError, match="not known"):
        options_of(pack(Empty()), Handler())
