"""Log URIs as containerd's own client sets them, through both containerds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.e2e.stdio.logs import entries
from tests.harness.handlers import available, is_manor
from tests.harness.registry import BUSYBOX

SAY = "echo out; echo err >&2; exit 3"


def words(handler: str) -> str:
    """What the container says. On a busy machine containerd's own shim may lose what comes right before the end."""
    return SAY if is_manor(handler) else SAY.replace("exit", "sleep 0.5; exit")


def run(node: Node, handler: str, uri: str, *command: str) -> None:
    """A container by `ctr run`, from its creation to its removal; it must end with 3."""
    daemon = node.containerd
    (runtime,) = [one for one in available() if one.name == handler]
    name = f"ctr-{os.getpid()}"
    words = [
        str(daemon.binaries.ctr),
        "--address",
        str(daemon.socket),
        "--namespace",
        "k8s.io",
        "run",
        "--rm",
    ]
    words += ["--runtime", runtime.runtime_type, "--log-uri", uri]
    words += ["--cgroup", f"{daemon.instance.cgroup_parent}/{name}", BUSYBOX, name, *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3, done.stderr


def test_a_file_gets_both_streams(node: Node, handler: str, tmp_path: Path) -> None:
    path = tmp_path / "some where" / "log"
    run(node, handler, f"file://{str(path).replace(' ', '%20')}", "sh", "-c", words(handler))
    assert sorted(path.read_text().splitlines()) == ["err", "out"]


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_a_program_gets_both_streams(node: Node, handler: str, tmp_path: Path, scheme: str) -> None:
    if scheme == "binary-v2" and handler != "manor" and node.containerd.version == "1.6":
        pytest.skip("containerd's own shim has it from 2.0 on")
    program = tmp_path / "logger"
    program.write_text(
        "#!/bin/sh\n(echo ready) >&5; exec 5>&-\n"
        "echo $CONTAINER_NAMESPACE $# $1 > $2.who; cat <&4 > $2.err & cat <&3 > $2.out; wait\n"
    )
    program.chmod(0o755)
    run(node, handler, f"{scheme}://{program}?to={tmp_path}/x", "sh", "-c", words(handler))
    assert (tmp_path / "x.who").read_text() == "k8s.io 2 to\n"
    assert (tmp_path / "x.out").read_text() == "out\n"
    assert (tmp_path / "x.err").read_text() == "err\n"


@pytest.mark.manor_only("a container log is written by containerd, with its own shim")
def test_a_container_log_is_written_by_the_shim(node: Node, handler: str, tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    run(node, handler, f"cri-log://{path}", "sh", "-c", SAY)
    assert sorted(entries(path)) == [(b"stderr", b"F", b"err"), (b"stdout", b"F", b"out")]
