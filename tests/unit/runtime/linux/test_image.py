"""The image: that memory is what it was, whose it is afterwards, and what is done where there is none."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[4]

BEGIN = f"""
import sys; sys.path.append({str(CHECKOUT)!r})
import os
from runtime.linux import image

def memory(kind):
    found = [line for line in open("/proc/self/smaps_rollup") if line.startswith(kind + ":")]
    return int(found[0].split()[1])

def mapping():
    return [line.split()[:2] for line in open("/proc/self/maps") if "/memfd:manor-image" in line]
"""
# Small objects and large ones, and what is made by importing.
LOAD = """
held = {number: (str(number), [number] * (number % 99), bytearray(number)) for number in range(3000)}
import runtime.cgroups, runtime.rootfs
"""
CHECK = """
def intact():
    return all(
        held[number] == (str(number), [number] * (number % 99), bytearray(number)) for number in range(3000)
    )
"""


def run(program: str) -> Any:
    """What the program prints at its end, as Python runs it that a launcher starts."""
    command = [sys.executable, "-ISB", "-c", BEGIN + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_what_was_loaded_is_in_the_image_and_not_anonymous() -> None:
    begun, before, without, anonymous, size, intact, kinds = run(f"""
begun = image.begin()
before = memory("Anonymous")
{LOAD}{CHECK}
without = before + memory("Shared_Dirty") + memory("Private_Dirty") - memory("Anonymous")
size = image.seal()
anonymous = memory("Anonymous")
print((begun, before, without, anonymous, size, intact(), [kind for _, kind in mapping()]))
""")
    assert begun
    assert intact
    assert kinds == ["rw-p"]
    assert size > 5_000_000
    assert anonymous - before < 1500 < (without - before) / 3


def test_a_child_and_its_parent_do_not_see_what_the_other_writes() -> None:
    told = run(f"""
image.begin()
{LOAD}{CHECK}
image.seal()
child = os.fork()
if not child:
    for number in range(3000):
        held[number][1].append("child"); held[number][2].extend(b"child")
    held.clear()
    os._exit(0)
ended = os.waitpid(child, 0)[1]
seen = intact()
for number in range(3000):
    held[number][1].append("parent")
child = os.fork()
if not child:
    os._exit(0 if all(held[number][1][-1] == "parent" for number in range(3000)) else 1)
print((ended, seen, os.waitpid(child, 0)[1]))
""")
    assert told == (0, True, 0)


def test_nobody_can_write_to_the_image() -> None:
    """Not through /proc either, where every mapping is a link to its file."""
    told = run(f"""
image.begin()
{LOAD}
image.seal()
import errno, fcntl
left_open = [fd for fd in ("3", "4", "5") if os.path.exists("/proc/self/fd/" + fd)]
path = "/proc/self/map_files/" + mapping()[0][0]
refused = 0
try:
    fd = os.open(path, os.O_RDWR)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    os.write(fd, b"overwritten")
except OSError as error:
    refused = error.errno  # EPERM both by the seal and to who may not follow such links
print((refused == errno.EPERM, left_open))
""")
    assert told == (True, [])


def test_a_process_goes_on_allocating_and_freeing_after_the_seal() -> None:
    told = run(f"""
image.begin()
{LOAD}{CHECK}
image.seal()
for _ in range(20):
    more = [bytes(number * 50) for number in range(3000)]
    small = [(number, str(number)) for number in range(50_000)]
    del more, small
import json
before = memory("Anonymous")
for _ in range(20):
    more = [bytes(number * 50) for number in range(3000)]
    del more
json.dumps(list(range(50_000)))
print((intact(), memory("Anonymous") - before < 2000))
""")
    assert told == (True, True)


@pytest.mark.parametrize(
    "obstacle",
    [
        "image.posix.memfd_create = refuse",
        "image._heap_end = lambda: 0",
        "image._call = lambda name, *rest: getattr(None, name) if name.startswith('mall') else call(name, *rest)",
    ],
    ids=["vm.memfd_noexec", "no room in the heap", "another C library"],
)
def test_without_an_image_memory_stays_anonymous(obstacle: str) -> None:
    told = run(f"""
def refuse(*_):
    raise PermissionError(13, "Permission denied")
call, kept = image._call, (os.memfd_create, image._heap_end)
{obstacle}
begun = image.begin()
image.posix.memfd_create, image._heap_end = kept
{LOAD}{CHECK}
print((begun, image.seal(), intact(), mapping(), len(os.listdir("/proc/self/fd"))))
""")
    assert told == (False, 0, True, [], 4)  # 0 to 2, and what lists them


def test_what_is_new_does_not_lie_in_the_gaps_of_the_image() -> None:
    anonymous, intact = run(f"""
def written():
    found, inside = 0, False
    for line in open("/proc/self/smaps"):
        inside = "/memfd:manor-image" in line if "-" in line.split()[0] else inside
        if inside and line.startswith("Anonymous:"):
            found += int(line.split()[1])
    return found

image.begin()
{LOAD}{CHECK}
held_more = [bytearray(1500) for _ in range(2000)]
del held_more[::2]
image.seal()
new = [bytearray(1500) for _ in range(1000)]
print((written(), intact()))
""")
    assert intact
    assert anonymous < 300
