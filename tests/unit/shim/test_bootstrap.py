"""Command line, stdin, grouping and sockets of a start; what containerd's versions send is spelled out here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument
from runtime.linux.fds import OwnedFd
from shim import bootstrap
from shim.api import types
from shim.api.bootstrap import LOG_LEVEL_DEBUG, BootstrapParams, BootstrapResult, Extension
from shim.api.codec import decode, encode
from shim.api.options import Options, RuntimeOptions
from shim.api.types import pack
from shim.bootstrap import Invocation, parse_arguments, read_bootstrap

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


def test_an_extension_that_is_no_options_is_not_taken_for_them() -> None:
    options = pack(Options(io_uid=1))
    other = types.Any("containerd.types.Something", b"\x08\x01")
    for extensions, found in (([other, options], options), ([other], None), ([], None)):
        params = BootstrapParams(instance_id="pod1", extensions=[Extension(each) for each in extensions])
        assert read_bootstrap(INVOCATION, {}, encode(params)).options == found


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


def test_the_address_is_left_in_the_bundle_whole(tmp_path: Path, bundle: OwnedFd) -> None:
    bootstrap.write_address(bundle.fileno(), "unix:///run/one")
    bootstrap.write_address(bundle.fileno(), "unix:///run/two")
    assert (tmp_path / "address").read_text() == "unix:///run/two"
    assert os.listdir(tmp_path) == ["address"]
