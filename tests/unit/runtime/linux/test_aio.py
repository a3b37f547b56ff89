"""Syncing a file without waiting for it."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.linux import aio
from runtime.linux.aio import FileSync
from runtime.linux.libc import syscall
from tests.harness.processes import descriptors


@pytest.fixture
def sync() -> Iterator[FileSync]:
    made = FileSync()
    yield made
    made.close()


def wait_for(sync: FileSync) -> None:
    poll = select.poll()
    poll.register(sync.fileno(), select.POLLIN)
    assert poll.poll(30_000), "the kernel did not say that it was done"


def test_a_file_is_synced_time_and_again_and_no_thread_is_needed(sync: FileSync, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for _ in range(3):
        os.write(fd, b"something")
        sync.begin(fd)
        wait_for(sync)
        sync.finish()
    assert len(os.listdir("/proc/self/task")) == before
    os.close(fd)


def test_nothing_is_ready_before_something_was_begun(sync: FileSync) -> None:
    with pytest.raises(BlockingIOError):
        sync.finish()


def test_what_cannot_be_synced_is_an_error(sync: FileSync) -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(OSError, match="io_submit") as failure:
        sync.begin(write_end)
    assert failure.value.errno == errno.EINVAL
    os.close(read_end)
    os.close(write_end)


def test_a_disk_that_refuses_is_an_error(
    sync: FileSync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    sync.begin(fd)
    wait_for(sync)

    def refused(name: str, number: int, *arguments: Any) -> int:
        count = syscall(name, number, *arguments)
        aio._EVENT.pack_into(arguments[3], 0, 0, 0, -errno.EIO, 0)
        return count

    monkeypatch.setattr("runtime.linux.aio.syscall", refused)
    with pytest.raises(OSError, match="fdatasync") as failure:
        sync.finish()
    assert failure.value.errno == errno.EIO
    monkeypatch.undo()
    os.close(fd)


def test_closing_gives_the_descriptor_back_and_can_be_repeated() -> None:
    before = descriptors()
    made = FileSync()
    made.close()
    made.close()
    assert not descriptors() - before
