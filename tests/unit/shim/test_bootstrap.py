"""Command line, stdin, grouping and sockets of a start; what containerd's versions send is spelled out here."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument, InvalidId
from runtime.linux.fds import OwnedFd
from runtime.state import check_id
from shim import bootstrap
from shim.api.bootstrap import LOG_LEVEL_DEBUG, BootstrapParams, BootstrapResult, Extension
from shim.api.codec import decode, encode
from shim.api.options import Options, RuntimeOptions
from shim.api.types import pack
from shim.bootstrap import BootstrapError, Invocation, parse_arguments, read_bootstrap
from shim.ttrpc.connection import Call, ServerConnection

NAME = "containerd-shim-manor-v2"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "-namespace k8s.io -address /run/c.sock -publish-binary /bin/c -id a1 start",
            Invocation("start", "k8s.io", "/run/c.sock", "/bin/c", "a1"),
        ),
        (
            "--namespace=k8s.io --id=a1 -bundle /b/a1 -debug delete",
            Invocation("delete", "k8s.io", "", "", "a1", "/b/a1", debug=True),
        ),
        ("-debug=false -id x start", Invocation("start", id="x")),
        ("-debug=1 -id x start", Invocation("start", id="x", debug=True)),
        ("-id= start", Invocation("start")),
        ("-id a=b start", Invocation("start", id="a=b")),
        ("-- start -id x", Invocation("start")),
        ("start -id x", Invocation("start")),
        ("-v", Invocation(show_version=True)),
        ("-version", Invocation(show_version=True)),
        ("-info", Invocation(show_info=True)),
        ("", Invocation()),
    ],
)
def test_the_command_line_is_read_as_go_reads_it(words: str, expected: Invocation) -> None:
    assert parse_arguments((NAME, *words.split())) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("-frob start", "not defined: -frob"),
        ("-id", "needs an argument: -id"),
        ("-debug=perhaps start", 'invalid boolean value "perhaps"'),
    ],
)
def test_a_wrong_flag_is_named(words: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        parse_arguments((NAME, *words.split()))


INVOCATION = Invocation("start", "k8s.io", "/run/c.sock", "/bin/c", "pod1")


def test_containerd_1_6_says_it_by_flags_and_environment() -> None:
    options = pack(Options(shim_cgroup="/shims"))
    wanted = read_bootstrap(INVOCATION, {"TTRPC_ADDRESS": "/run/c.sock.ttrpc"}, encode(options))
    assert (wanted.ttrpc_address, wanted.grpc_address) == ("/run/c.sock.ttrpc", "/run/c.sock")
    assert wanted.socket_dir == "/run/containerd/s"
    assert wanted.options is not None
    assert wanted.options.type_url == "containerd.runc.v1.Options"
    assert bootstrap.encode_answer(wanted, "unix:///x") == b"unix:///x"


def test_nothing_on_stdin_is_no_options() -> None:
    wanted = read_bootstrap(INVOCATION, {}, b"")
    assert wanted.options is None
    assert not wanted.speaks_protobuf


def test_containerd_2_3_says_it_in_protobuf_and_is_answered_so() -> None:
    params = BootstrapParams(
        instance_id="pod1",
        namespace="k8s.io",
        log_level=LOG_LEVEL_DEBUG,
        containerd_ttrpc_address="/run/2.ttrpc",
        containerd_grpc_address="/run/2",
        extensions=[Extension(pack(RuntimeOptions(config_path="/etc/manor")))],
        socket_dir="/run/s",
    )
    wanted = read_bootstrap(INVOCATION, {"TTRPC_ADDRESS": "/old"}, encode(params))
    assert (wanted.ttrpc_address, wanted.grpc_address, wanted.socket_dir) == (
        "/run/2.ttrpc",
        "/run/2",
        "/run/s",
    )
    assert wanted.debug
    assert wanted.options is not None
    answer = decode(BootstrapResult, bootstrap.encode_answer(wanted, "unix:///x"))
    assert (answer.version, answer.address, answer.protocol) == (3, "unix:///x", "ttrpc")


def test_options_are_not_taken_for_parameters_although_they_decode_as_such() -> None:
    options = pack(RuntimeOptions(type_url="x", config_path="/etc/manor"))
    assert decode(BootstrapParams, encode(options)).instance_id == "runtimeoptions.v1.Options"
    assert not read_bootstrap(INVOCATION, {}, encode(options)).speaks_protobuf


@pytest.mark.parametrize("stdin", [b"\xff", b"{}", b"\x0a\x05pod1"])
def test_garbage_on_stdin_is_no_options(stdin: bytes) -> None:
    wanted = read_bootstrap(INVOCATION, {}, stdin)
    assert wanted.options is None
    assert not wanted.speaks_protobuf


def test_a_start_without_namespace_or_id_is_refused() -> None:
    for incomplete in (Invocation("start", id="x"), Invocation("start", "ns")):
        with pytest.raises(InvalidArgument, match="-namespace and -id"):
            read_bootstrap(incomplete, {}, b"")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[OwnedFd]:
    with OwnedFd(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)) as fd:
        yield fd


@pytest.mark.parametrize(
    ("annotations", "group"),
    [
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "mine"}, "mine"),
        ({"io.containerd.runc.v2.group": ""}, "own"),
        ({"other": "x"}, "own"),
        ({}, "own"),
        (None, "own"),
        ("text", "own"),
        ({"io.kubernetes.cri.sandbox-id": 5}, "own"),
    ],
)
def test_containers_of_a_pod_have_one_group(
    tmp_path: Path, bundle: OwnedFd, annotations: object, group: str
) -> None:
    config = {"ociVersion": "1.0.2"} if annotations is None else {"annotations": annotations}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert bootstrap.group_of(bundle.fileno(), "own") == group


def test_without_a_config_a_container_is_its_own_group(bundle: OwnedFd) -> None:
    assert bootstrap.group_of(bundle.fileno(), "own") == "own"


@pytest.mark.parametrize("content", ["", "{", "[]x", "\xff"])
def test_a_config_that_is_no_json_is_an_error(tmp_path: Path, bundle: OwnedFd, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidArgument, match="config.json"):
        bootstrap.group_of(bundle.fileno(), "own")


def test_a_config_that_is_a_fifo_does_not_hang(tmp_path: Path, bundle: OwnedFd) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InvalidArgument):
        bootstrap.group_of(bundle.fileno(), "own")


def test_the_socket_has_containerds_conventional_name() -> None:
    text = "/run/containerd/containerd.sock/k8s.io/pod1"
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert bootstrap.pod_name("/run/containerd/containerd.sock", "k8s.io", "pod1") == expected


def modes(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_socket_and_directories_are_for_their_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        listener = bootstrap.listen(str(tmp_path / "a/b/socket"))
        assert listener is not None
        assert [modes(tmp_path / name) for name in ("a", "a/b", "a/b/socket")] == [0o700, 0o700, 0o600]
        assert os.umask(umask) == umask
        listener.close()
    finally:
        os.umask(before)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "ANSWER_TIMEOUT_S", 0.05)


def test_a_shim_that_answers_is_found_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    first = bootstrap.listen(path)
    assert first is not None
    listener = socket.socket(fileno=first.release())

    def serve() -> None:
        peer, _address = listener.accept()
        with peer:
            (call,) = ServerConnection().receive(peer.recv(4096))
            assert isinstance(call, Call)
            assert (call.service, call.method) == ("containerd.task.v2.Task", "Connect")
            peer.sendall(b"an answer")

    thread = threading.Thread(target=serve)
    thread.start()
    assert bootstrap.listen(path) is None
    thread.join()
    listener.close()


def test_a_shim_that_dies_with_its_socket_still_open_is_not_taken_for_alive(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    dying = bootstrap.listen(path)
    assert dying is not None
    threading.Timer(0.1, dying.close).start()
    assert not bootstrap.is_served(path)


def test_a_shim_that_is_stopped_is_found_and_left_alone(tmp_path: Path, impatient: None) -> None:
    path = str(tmp_path / "socket")
    first = bootstrap.listen(path)
    assert first is not None
    assert bootstrap.is_served(path)
    assert bootstrap.listen(path) is None
    first.close()


def test_a_shim_too_busy_to_accept_counts_as_one_that_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "_BACKLOG", 0)
    path = str(tmp_path / "socket")
    first = bootstrap.listen(path)
    assert first is not None
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for each in waiting:
        each.setblocking(False)
        try:
            each.connect(path)
        except BlockingIOError:
            pass
    assert bootstrap.listen(path) is None
    for each in waiting:
        each.close()
    first.close()


def test_the_socket_of_a_dead_shim_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    dead = bootstrap.listen(path)
    assert dead is not None
    dead.close()
    assert os.path.exists(path)
    assert not bootstrap.is_served(path)
    again = bootstrap.listen(path)
    assert again is not None
    again.close()


def test_of_many_starts_at_once_one_becomes_the_shim(tmp_path: Path, impatient: None) -> None:
    path = str(tmp_path / "socket")
    dead = bootstrap.listen(path)
    assert dead is not None
    dead.close()
    won: list[OwnedFd] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        listener = bootstrap.listen(path)
        if listener is not None:
            won.append(listener)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert bootstrap.is_served(path)
    won[0].close()


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(BootstrapError, match="others may write"):
        bootstrap.listen(str(tmp_path / "open/socket"))


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match="longer than 107 bytes"):
        bootstrap.listen(str(tmp_path / ("x" * 100)))


def test_the_address_is_left_in_the_bundle_whole(tmp_path: Path, bundle: OwnedFd) -> None:
    bootstrap.write_address(bundle.fileno(), "unix:///run/one")
    bootstrap.write_address(bundle.fileno(), "unix:///run/two")
    assert (tmp_path / "address").read_text() == "unix:///run/two"
    assert os.listdir(tmp_path) == ["address"]


def test_where_a_shim_listens_is_known_until_its_pod_is_forgotten(tmp_path: Path) -> None:
    pod = str(tmp_path / "pods/abc")
    assert bootstrap.recorded_socket(pod) == ""
    bootstrap.record_socket(pod, "/elsewhere/s/abc")
    assert bootstrap.recorded_socket(pod) == "/elsewhere/s/abc"
    assert modes(tmp_path / "pods/abc") == 0o700
    (tmp_path / "pods/abc/c1").mkdir()
    bootstrap.forget_pod(pod)
    assert bootstrap.recorded_socket(pod) == "/elsewhere/s/abc"
    (tmp_path / "pods/abc/c1").rmdir()
    bootstrap.forget_pod(pod)
    assert not os.path.exists(pod)
    bootstrap.forget_pod(pod)


def test_the_record_cannot_be_taken_for_a_container() -> None:
    with pytest.raises(InvalidId):
        check_id(bootstrap.SOCKET_FILE)
