"""Pid files and sockets that take descriptors."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path

import pytest

from runtime.cli import handover
from runtime.errors import InvalidArgument


def test_a_pid_file_is_whole_and_alone(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("something longer than a pid")
    handover.write_pid_file(str(tmp_path / "pid"), 42)
    assert (tmp_path / "pid").read_text() == "42"
    assert os.listdir(tmp_path) == ["pid"]


def test_a_pid_file_that_cannot_take_its_name_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    with pytest.raises(OSError, match="directory"):
        handover.write_pid_file(str(tmp_path / "pid"), 42)
    assert os.listdir(tmp_path) == ["pid"]


def test_a_descriptor_comes_with_its_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, open(tmp_path / "file", "w+b") as file:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with handover.connect("--x-socket", str(tmp_path / "sock")) as connection:
            handover.hand_over("--x-socket", connection, file.fileno(), b"its name")
            peer, _address = listener.accept()
        with peer:
            data, ((_level, _kind, rights),), _flags, _from = peer.recvmsg(100, socket.CMSG_SPACE(4))
        (number,) = array.array("i", rights)
        assert data == b"its name"
        assert os.path.samestat(os.fstat(number), os.fstat(file.fileno()))
        os.close(number)


def test_a_socket_that_nobody_listens_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="--x-socket: connect to .*/sock: no such file or directory"):
        handover.connect("--x-socket", str(tmp_path / "sock"))


def test_a_socket_of_too_long_a_name_is_named() -> None:
    with pytest.raises(InvalidArgument, match="--x-socket: connect to /xxx"):
        handover.connect("--x-socket", "/" + "x" * 200)
