"""What processes use, with all that came of them, and nothing that came of another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from manor.usage import Usage, size, usage_of, usage_of_shim

_BUSY = "import os\nwhile sum(os.times()[:2]) < 0.2: pass\n"


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process that has done something and has an idle child; the pids of both."""
    script = f"""{_BUSY}
import subprocess
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
input()
child.kill()
child.wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        yield parent.pid, int(parent.stdout.readline())
        parent.communicate("\n")


def test_children_count_with_their_parent_unless_they_are_asked_for(family: tuple[int, int]) -> None:
    parent, child = family
    alone = psutil.Process(parent).memory_info().rss
    both = usage_of({parent})
    assert set(both) == {parent}
    assert both[parent].cpu_s >= 0.2
    assert both[parent].memory_bytes > alone
    apart = usage_of({parent, child})
    assert apart[child].memory_bytes == both[parent].memory_bytes - apart[parent].memory_bytes
    assert apart[child].cpu_s < 0.2


def test_of_who_is_gone_nothing_is_told() -> None:
    assert usage_of({2**22}) == {}
    assert usage_of(()) == {}
    assert usage_of_shim(2**22) is None


def test_a_shims_memory_is_its_share() -> None:
    found = usage_of_shim(os.getpid())
    assert found is not None
    assert 0 < found.memory_bytes <= psutil.Process().memory_info().rss
    assert isinstance(found, Usage)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, "0K"),
        (912 << 10, "912K"),
        (3_565_158, "3.4M"),
        (250 << 20, "250M"),
        (1_288_490_189, "1.2G"),
        (3 << 40, "3072G"),
    ],
)
def test_a_size_is_short(number: int, told: str) -> None:
    assert size(number) == told
