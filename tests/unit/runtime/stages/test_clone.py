"""Stages as processes: what they inherit, how they end, and by which system call they are made."""

from __future__ import annotations

import errno
import os
import signal
import struct
from typing import TYPE_CHECKING

import pytest

from runtime.errors import StageError
from runtime.linux import process
from runtime.linux.ffi import c_size_t
from runtime.linux.libc import syscall
from runtime.stages.channel import Channel, ChannelClosed, channel_pair
from runtime.stages.clone import Step, clone_stage
from runtime.stages.messages import Ready, Start

if TYPE_CHECKING:
    from collections.abc import Callable


def cloned(run: Callable[[Step, Channel], None], keep: tuple[int, ...] = ()) -> tuple[Channel, int]:
    near, far = channel_pair("main", "test")
    pid, pidfd = clone_stage("test", lambda step: run(step, far), far, keep)
    os.close(pidfd)
    far.close()
    return near, pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_stage_that_succeeds_exits_with_0() -> None:
    _near, pid = cloned(lambda _step, _far: None)
    assert exit_code(pid) == 0


def test_a_stage_that_fails_reports_its_step_and_exits_with_255() -> None:
    def run(step: Step, _far: Channel) -> None:
        step.begin("mount", "/a")
        raise OSError(errno.ENOENT, "gone", "/a/b")

    near, pid = cloned(run)
    with pytest.raises(StageError) as caught:
        near.receive()
    assert (caught.value.stage, caught.value.operation, caught.value.subject) == ("test", "mount", "/a")
    assert caught.value.number == errno.ENOENT
    assert "/a/b: gone" in str(caught.value)
    assert exit_code(pid) == 255


def test_not_even_an_exit_request_returns_into_the_parents_code() -> None:
    def run(_step: Step, _far: Channel) -> None:
        raise SystemExit(0)

    near, pid = cloned(run)
    with pytest.raises(StageError, match="SystemExit"):
        near.receive()
    assert exit_code(pid) == 255


def test_a_stage_keeps_only_the_descriptors_it_was_told_to() -> None:
    kept, others = os.pipe()

    def run(_step: Step, far: Channel) -> None:
        numbers = []
        for number in range(3, 256):
            try:
                os.fstat(number)
            except OSError:
                continue
            numbers.append(str(number))
        far.send(Ready((), (), (" ".join(numbers), str(far.fileno()))))

    near, pid = cloned(run, keep=(kept,))
    message, _fds = near.receive()
    assert isinstance(message, Ready)
    open_ones, channel = message.warnings
    assert sorted(map(int, open_ones.split())) == sorted((kept, int(channel)))
    assert exit_code(pid) == 0
    os.close(kept)
    os.close(others)


def test_a_stage_has_default_signal_handlers_and_is_not_dumpable() -> None:
    def run(_step: Step, far: Channel) -> None:
        with open("/proc/self/status", encoding="ascii") as file:
            status = dict(line.split(":\t", 1) for line in file.read().splitlines())
        dumpable = str(process.prctl(3))
        far.send(Ready((), (), (status["SigIgn"], status["SigCgt"], status["Name"], dumpable)))

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        near, pid = cloned(run)
    finally:
        signal.signal(signal.SIGUSR1, before)
    message, _fds = near.receive()
    assert isinstance(message, Ready)
    ignored, caught, name, dumpable = message.warnings
    assert int(ignored, 16) == 0
    assert int(caught, 16) & ~(3 << 31) == 0  # 32 and 33 are glibc's own
    assert name == "manor:[test]"
    assert dumpable == "0"
    exit_code(pid)


def test_a_signal_that_glibc_hides_is_not_left_ignored() -> None:
    ignore = struct.pack("QQQQ", 1, 0, 0, 0)

    def run(_step: Step, far: Channel) -> None:
        with open("/proc/self/status", encoding="ascii") as file:
            (ignored,) = [line for line in file.read().splitlines() if line.startswith("SigIgn")]
        far.send(Ready((), (), (ignored,)))

    syscall("rt_sigaction", process._SYS_rt_sigaction, 32, ignore, None, c_size_t(8))
    try:
        near, pid = cloned(run)
    finally:
        process.reset_hidden_signals()
    message, _fds = near.receive()
    assert isinstance(message, Ready)
    assert message.warnings[0] == "SigIgn:\t" + "0" * 16
    exit_code(pid)


def test_the_parents_signal_mask_is_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    _near, pid = cloned(lambda _step, _far: None)
    exit_code(pid)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_sibling_is_a_child_of_our_parent() -> None:
    def inter(_step: Step, far: Channel) -> None:
        pid, _pidfd = clone_stage("sibling", lambda _step: os._exit(5), far, (), sibling=True)
        far.send(Ready((), (), (str(pid),)))

    near, pid = cloned(inter)
    message, _fds = near.receive()
    assert isinstance(message, Ready)
    assert exit_code(int(message.warnings[0])) == 5
    assert exit_code(pid) == 0


def waits_for_start(_step: Step, far: Channel) -> None:
    far.expect(Start)


def test_clone_is_used_where_clone3_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object) -> tuple[int, int]:
        raise OSError(errno.ENOSYS, "clone3: Function not implemented")

    monkeypatch.setattr(process, "clone3", missing)
    near, pid = cloned(waits_for_start)
    near.send(Start())
    assert exit_code(pid) == 0


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBUSY, errno.EAGAIN])
def test_any_other_error_of_clone3_is_its_answer(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_arguments: object) -> tuple[int, int]:
        raise OSError(number, "clone3")

    monkeypatch.setattr(process, "clone3", refuse)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(OSError, match="clone3") as caught:
        cloned(lambda _step, _far: None)
    assert caught.value.errno == number
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_the_end_of_a_stage_ends_its_channel() -> None:
    near, pid = cloned(lambda _step, _far: None)
    with pytest.raises(ChannelClosed):
        near.receive()
    exit_code(pid)
