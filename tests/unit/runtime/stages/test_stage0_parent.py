"""Stage 0's side of the conversation, with children that say what the test wants them to say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime.errors import StageError
from runtime.stages import stage0_parent
from runtime.stages.channel import ChannelClosed, channel_pair
from runtime.stages.clone import clone_stage
from runtime.stages.direct import Channels
from runtime.stages.messages import (
    HostDone,
    HostRequest,
    InitPid,
    LimitsSet,
    Listener,
    ListenerAt,
    ListenerTaken,
    MappingRequest,
    MappingWritten,
    Ready,
    Start,
)
from runtime.stages.stage0_parent import HostSide, Launched, await_execve, start_landlord
from runtime.trace import Timeline
from runtime.waiting import Sleep, run
from tests.harness.processes import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux.fds import OwnedFd
    from runtime.record import Record
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.waiting import Operation

    Script = Callable[[Channel], None]


class Recorder:
    """A HostSide that notes what it was asked to do."""

    def __init__(self, maps: bool = False, attends: bool = False, notifies: bool = False) -> None:
        self.asked: list[tuple[str, int]] = []
        self.side = HostSide(
            Timeline(),
            self._limits,
            self._mapping if maps else None,
            self._attend if attends else None,
            self._notify if notifies else None,
        )

    def _limits(self, pid: int) -> tuple[str, ...]:
        self.asked.append(("limits", pid))
        return ("a limit was lowered",)

    def _mapping(self, pid: int) -> Operation[None]:
        self.asked.append(("mapping", pid))
        yield Sleep(0)

    def _attend(self, pid: int) -> Operation[str]:
        self.asked.append(("attend", pid))
        yield Sleep(0)
        return "eth0 is yours"

    def _notify(self, pid: int, listener: OwnedFd) -> Operation[None]:
        os.write(listener.fileno(), b"seen")
        self.asked.append(("notify", pid))
        yield Sleep(0)


def stage(script: Script, keep: tuple[int, ...] = ()) -> Channels:
    near, far = channel_pair("main", "2:INIT")
    pid, pidfd = clone_stage("2:INIT", lambda _step: script(far), far, keep)
    far.close()
    return Channels(pid, pidfd, near)


def converse(channels: Channels, recorder: Recorder | None = None) -> Launched:
    return run(stage0_parent.converse(channels, (recorder or Recorder()).side))


def waits_for_start(far: Channel) -> None:
    far.expect(Start)


def finish(launched: Launched) -> int:
    status = os.waitpid(launched.pid, 0x40000000)[1]
    launched.close()
    return os.waitstatus_to_exitcode(status)


def test_a_stage_is_ready_when_it_says_so() -> None:
    def script(far: Channel) -> None:
        far.expect(LimitsSet)
        far.send(Ready((), (("pivot into", 5),), ("something is odd",)))
        far.expect(Start)

    recorder = Recorder()
    launched = converse(stage(script), recorder)
    assert recorder.asked == [("limits", launched.pid)]
    assert ("pivot into", 5) in recorder.side.timeline.marks()
    assert launched.warnings == ("a limit was lowered", "something is odd")
    run(start_landlord(launched))
    assert finish(launched) == 0


def test_requests_are_answered_in_the_order_they_come() -> None:
    def script(far: Channel) -> None:
        far.send(MappingRequest())
        far.expect(MappingWritten)
        far.send(HostRequest())
        assert far.expect(HostDone).net_devices == "eth0 is yours"
        far.expect(LimitsSet)
        far.send(Ready())

    recorder = Recorder(maps=True, attends=True)
    launched = converse(stage(script), recorder)
    assert [what for what, _pid in recorder.asked] == ["limits", "mapping", "attend"]
    assert finish(launched) == 0


def test_a_seccomp_listener_is_passed_on_before_the_stage_is_ready() -> None:
    reader, writer = os.pipe()

    def script(far: Channel) -> None:
        far.expect(LimitsSet)
        far.send(Listener(), (writer,))
        far.send(Ready())

    recorder = Recorder(notifies=True)
    try:
        launched = converse(stage(script, (writer,)), recorder)
        assert os.read(reader, 10) == b"seen"
    finally:
        os.close(reader)
        os.close(writer)
    assert [what for what, _pid in recorder.asked] == ["limits", "notify"]
    assert finish(launched) == 0


def test_a_seccomp_listener_is_taken_out_of_the_stage_if_that_may_be() -> None:
    reader, writer = os.pipe()

    def script(far: Channel) -> None:
        far.expect(LimitsSet)
        far.write(ListenerAt(writer))
        if not far.expect(ListenerTaken).taken:  # we are not allowed to ptrace it
            far.send(Listener(), (writer,))
        far.send(Ready())

    recorder = Recorder(notifies=True)
    try:
        launched = converse(stage(script, (writer,)), recorder)
        assert os.read(reader, 10) == b"seen"
    finally:
        os.close(reader)
        os.close(writer)
    assert [what for what, _pid in recorder.asked] == ["limits", "notify"]
    assert finish(launched) == 0


@pytest.mark.parametrize("message", [Listener(), ListenerAt(0)], ids=lambda message: type(message).__name__)
def test_a_seccomp_listener_that_nobody_asked_for_is_an_error(message: Record) -> None:
    def script(far: Channel) -> None:
        far.expect(LimitsSet)
        far.send(message)
        far.receive()

    with pytest.raises(StageError, match="a descriptor that nobody asked for"):
        converse(stage(script))


def test_a_console_arrives_with_ready() -> None:
    def script(far: Channel) -> None:
        reading, writing = os.pipe()
        os.write(writing, b"console")
        far.expect(LimitsSet)
        far.send(Ready(("console",)), (reading,))

    launched = converse(stage(script))
    assert launched.console is not None
    assert os.read(launched.console.fileno(), 20) == b"console"
    finish(launched)


def test_the_failure_of_a_stage_is_raised_and_the_stage_is_gone() -> None:
    def script(far: Channel) -> None:
        far.expect(LimitsSet)
        raise OSError(2, "No such file or directory", "/x")

    channels = stage(script)
    with pytest.raises(StageError, match="2:INIT: begin: /x: No such file"):
        converse(channels)
    with pytest.raises(ChildProcessError):
        os.waitpid(channels.pid, 0)


def test_a_stage_that_fails_before_it_is_told_its_limits_reports_why() -> None:
    def script(_far: Channel) -> None:
        raise OSError(16, "Device or resource busy")

    channels = stage(script)
    os.waitid(os.P_PID, channels.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(StageError, match="busy"):
        converse(channels)


def test_a_stage_that_ends_without_a_word_is_an_error() -> None:
    with pytest.raises(ChannelClosed, match="2:INIT ended without a word"):
        converse(stage(lambda _far: os._exit(1)))


def test_a_stage_that_says_the_wrong_thing_is_killed() -> None:
    def script(far: Channel) -> None:
        far.send(Start())
        far.expect(Ready)

    channels = stage(script)
    with pytest.raises(
        StageError,
        match="expected SourcesRequest or HostRequest or ListenerAt or Listener or Ready, got Start",
    ):
        converse(channels)
    with pytest.raises(ChildProcessError):
        os.waitpid(channels.pid, 0)


def test_a_stage_that_is_stuck_is_killed_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage0_parent, "STAGE_TIMEOUT_S", 0.05)
    channels = stage(waits_for_start)
    with pytest.raises((StageError, TimeoutError)):
        converse(channels)
    with pytest.raises(ChildProcessError):
        os.waitpid(channels.pid, 0)


def test_limits_that_cannot_be_set_end_the_stage() -> None:
    def refuse(_pid: int) -> tuple[str, ...]:
        raise PermissionError(1, "RLIMIT_NOFILE")

    channels = stage(waits_for_start)
    with pytest.raises(PermissionError):
        run(stage0_parent.converse(channels, HostSide(Timeline(), refuse)))
    with pytest.raises(ChildProcessError):
        os.waitpid(channels.pid, 0)


def test_no_descriptor_is_left_open_after_a_failure() -> None:
    before = descriptors()
    with pytest.raises(ChannelClosed):
        converse(stage(lambda _far: os._exit(1)))
    assert not descriptors() - before


def test_a_failed_execve_is_told_from_a_successful_one() -> None:
    def script(far: Channel) -> None:
        far.expect(LimitsSet)
        far.send(Ready())
        raise OSError(8, "Exec format error", "/bad")

    launched = converse(stage(script))
    with pytest.raises(StageError, match="/bad: Exec format error"):
        run(await_execve(launched))
    finish(launched)


def test_the_end_of_the_channel_is_a_successful_execve() -> None:
    def script(far: Channel) -> None:
        far.expect(LimitsSet)
        far.send(Ready())
        os.execv("/bin/true", ["true"])

    launched = converse(stage(script))
    run(await_execve(launched))
    assert finish(launched) == 0


@pytest.mark.parametrize("confines", [False, True])
def test_the_intermediate_process_is_reaped_and_its_sibling_is_init(confines: bool) -> None:
    near_init, far_init = channel_pair("main", "2:INIT")
    near_inter, far_inter = channel_pair("main", "1:INTER")

    def init(_step: Step) -> None:
        far_init.expect(LimitsSet)
        far_init.send(Ready())

    def inter(_step: Step) -> None:
        far_inter.send(MappingRequest())
        far_inter.expect(MappingWritten)
        pid, pidfd = clone_stage("2:INIT", init, far_init, (), sibling=True)
        far_inter.send(InitPid(pid), (pidfd,))

    pid, pidfd = clone_stage("1:INTER", inter, far_inter, (far_init.fileno(),))
    far_init.close()
    far_inter.close()
    recorder = Recorder(maps=True)

    def confine() -> Operation[None]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)  # it would count as one of the container's
        recorder.asked.append(("processes", 0))
        yield Sleep(0)

    recorder.side.confine = confine if confines else None
    launched = converse(Channels(pid, pidfd, near_init, near_inter), recorder)
    assert launched.pid != pid
    limited = [("processes", 0)] if confines else []
    assert recorder.asked == [("mapping", pid), *limited, ("limits", launched.pid)]
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
    assert finish(launched) == 0
