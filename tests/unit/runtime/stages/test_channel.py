"""The channel between two stages: messages whole and in order, descriptors, failures."""

from __future__ import annotations

import os

import pytest

from runtime.errors import MountError, StageError
from runtime.stages.channel import ChannelClosed, channel_pair
from runtime.stages.messages import HostDone, InitPid, LimitsSet, Ready, Start
from runtime.waiting import run
from tests.harness.processes import descriptors


def test_a_message_arrives_at_the_other_end() -> None:
    near, far = channel_pair("main", "2:INIT")
    near.send(LimitsSet())
    assert far.expect(LimitsSet) == LimitsSet()


def test_a_wrong_message_is_an_error_that_names_both() -> None:
    near, far = channel_pair("main", "2:INIT")
    near.send(Start())
    with pytest.raises(StageError, match="expected LimitsSet, got Start"):
        far.expect(LimitsSet)


def test_stage_0_refuses_a_message_it_does_not_wait_for() -> None:
    near, far = channel_pair("main", "2:INIT")
    far.send(HostDone(""))
    with pytest.raises(StageError, match="message of 2:INIT: expected InitPid or Ready, got HostDone"):
        run(near.received((InitPid, Ready), 5))


def test_a_closed_peer_is_told_from_a_message() -> None:
    near, far = channel_pair("main", "2:INIT")
    far.close()
    with pytest.raises(ChannelClosed, match="2:INIT ended without a word"):
        run(near.received((Ready,), 5))


def test_a_peer_that_leaves_our_message_unread_is_closed_too() -> None:
    near, far = channel_pair("main", "2:INIT")
    near.send(Start())
    far.close()
    with pytest.raises(ChannelClosed):
        near.receive()


def test_the_last_words_of_a_peer_are_heard_although_it_left_our_message_unread() -> None:
    near, far = channel_pair("main", "2:INIT")
    near.send(LimitsSet())
    far.send_failure("2:INIT", ("join", "/n"), OSError(22, "Invalid argument"))
    far.close()
    with pytest.raises(StageError, match="2:INIT: join /n: Invalid argument"):
        near.receive()


def test_a_failure_is_raised_at_the_other_end_with_stage_operation_and_object() -> None:
    near, far = channel_pair("main", "2:INIT")
    far.send_failure("2:INIT", ("pivot into", "/r"), OSError(16, "Device or resource busy"))
    with pytest.raises(StageError) as caught:
        near.receive()
    assert str(caught.value) == "2:INIT: pivot into /r: Device or resource busy"
    assert caught.value.number == 16


def test_the_kind_of_an_error_survives_the_way() -> None:
    near, far = channel_pair("main", "2:INIT")
    failure = MountError("bind /a on /b")
    failure.kind = "unsupported"
    far.send_failure("2:INIT", ("mount", "/b"), failure)
    with pytest.raises(StageError) as caught:
        near.receive()
    assert caught.value.kind == "unsupported"


def test_a_failure_nobody_listens_to_is_no_second_failure() -> None:
    near, far = channel_pair("main", "2:INIT")
    near.close()
    far.send_failure("2:INIT", ("mount", "/b"), ValueError("x"))


def test_fds_travel_with_a_message_and_are_close_on_exec() -> None:
    near, far = channel_pair("main", "2:INIT")
    reading, writing = os.pipe()
    far.send(Ready(("console",)), (reading,))
    _message, (received,) = near.receive()
    os.write(writing, b"hello")
    assert os.read(received.fileno(), 5) == b"hello"
    assert not os.get_inheritable(received.fileno())


def test_fds_of_a_refused_message_are_closed() -> None:
    near, far = channel_pair("main", "2:INIT")
    before = descriptors()
    far.send(Ready(("console",)), (0, 1, 2))
    with pytest.raises(StageError):
        run(near.received((InitPid,), 5))
    assert not descriptors() - before
