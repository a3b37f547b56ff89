"""What a process has open."""

from __future__ import annotations

import os
import socket

from tests.harness.processes import descriptors


def test_a_descriptor_more_is_seen_also_where_another_was_closed() -> None:
    held = os.open("/dev/zero", os.O_RDONLY)
    before = descriptors()
    assert before["/dev/zero"] == 1
    left, other = socket.socketpair()
    os.close(held)
    assert sorted((descriptors() - before).values()) == [1, 1]
    again = os.dup(left.fileno())
    assert sorted((descriptors() - before).values()) == [1, 2]
    os.close(again)
    left.close()
    other.close()
    assert not descriptors() - before
