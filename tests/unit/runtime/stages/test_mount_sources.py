"""Init's side of the conversation with the process that opens mount sources for it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from runtime.errors import MountError, StageError
from runtime.stages import mount_sources
from runtime.stages.channel import Channel, ChannelClosed, channel_pair
from runtime.stages.messages import Source, SourceRequest, SourcesRequest, Start
from runtime.stages.mount_sources import HostsSources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Script = Callable[[Channel], None]


@pytest.fixture
def hosts() -> Iterator[Callable[[Script], HostsSources]]:
    """Makes init's side, with an opener at the other end that does what the test says."""
    near, far = channel_pair("main", "2:INIT")
    made: list[HostsSources] = []
    threads: list[threading.Thread] = []

    def make(script: Script) -> HostsSources:
        def serve() -> None:
            message, fds = near.receive()
            assert isinstance(message, SourcesRequest)
            channel = Channel(fds[0], "2:INIT")
            script(channel)
            channel.close()

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        made.append(HostsSources(far))
        return made[0]

    yield make
    for each in made:
        each.close()
    for thread in threads:  # whoever clones a process next must be the only thread
        thread.join()
    near.close()
    far.close()


def answer(channel: Channel) -> None:
    """A mount, for the test's purposes: a descriptor that tells which step was asked for."""
    while True:
        try:
            request = channel.expect(SourceRequest)
        except ChannelClosed:
            return
        memory = os.memfd_create("mount")
        os.write(memory, str(request.step).encode())
        channel.send(Source(), (memory,))
        os.close(memory)


def test_sources_are_asked_for_by_number_on_one_connection(hosts: Callable[[Script], HostsSources]) -> None:
    sources = hosts(answer)
    for number in (3, 0, 17):
        with sources.open(number) as mount:
            assert os.pread(mount.fileno(), 9, 0) == str(number).encode()


def test_an_answer_without_a_mount_is_an_error(hosts: Callable[[Script], HostsSources]) -> None:
    def wrong(channel: Channel) -> None:
        channel.expect(SourceRequest)
        channel.send(Source())

    with pytest.raises(StageError, match="a mount was expected"):
        hosts(wrong).open(1)


def test_another_message_is_an_error_and_what_comes_with_it_is_closed(
    hosts: Callable[[Script], HostsSources],
) -> None:
    def wrong(channel: Channel) -> None:
        channel.expect(SourceRequest)
        channel.send(Start(), (0,))

    sources = hosts(wrong)
    with pytest.raises(StageError, match="a mount was expected"):
        sources.open(1)


def test_the_failure_of_the_hosts_side_arrives(hosts: Callable[[Script], HostsSources]) -> None:
    def fails(channel: Channel) -> None:
        channel.expect(SourceRequest)
        channel.send_failure("0:MOUNT", ("open mount source", ""), MountError("mounts[3]: source /x: gone"))

    with pytest.raises(StageError, match=r"0:MOUNT: open mount source: mounts\[3\]: source /x: gone"):
        hosts(fails).open(1)


def test_no_answer_in_time_is_an_error(
    hosts: Callable[[Script], HostsSources], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_sources, "TIMEOUT_S", 0.05)
    done = threading.Event()

    def silent(_channel: Channel) -> None:
        done.wait(5)

    sources = hosts(silent)
    with pytest.raises(MountError, match="did not open the sources of the mounts"):
        sources.open(1)
    done.set()


@pytest.mark.parametrize("speaks", [True, False])
def test_a_failure_that_was_told_before_anything_was_asked_arrives(
    hosts: Callable[[Script], HostsSources], speaks: bool
) -> None:
    gone = threading.Event()

    def fail(channel: Channel) -> None:
        if speaks:
            channel.send_failure("0:MOUNT", ("open mount source", "/volume"), OSError(28, "too much of it"))
        channel.close()
        gone.set()

    sources = hosts(fail)
    sources._connect()
    assert gone.wait(30)
    kind, said = (StageError, "open mount source /volume") if speaks else (ChannelClosed, "0:MOUNT ended")
    with pytest.raises(kind, match=said):
        sources.open(3)
