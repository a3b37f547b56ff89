"""Immortal objects: that they are not counted any more, that a program runs on with them, and where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.linux import sharing

CHECKOUT = Path(__file__).resolve().parents[4]
IMMORTAL = 0xFFFFFFFF

# Uses what was there before in as many ways as we can think of, makes and drops new things, and prints the end.
PROGRAM = f"""
import sys; sys.path.insert(0, {str(CHECKOUT)!r})
import gc, os
from runtime.linux import sharing

class Thing:
    kept = [1, 2]
    def __init__(self, name):
        self.name = name
    def tell(self):
        return f"{{self.name}} {{len(self.kept)}}"

def grow(held={{}}):
    held[len(held)] = Thing(str(len(held)))
    return held

before = Thing("before")
text = "a text that was there " + str(os.getpid())
made = sharing.make_immortal()
gc.freeze()
for number in range(2000):
    assert before.tell() == "before 2"
    Thing.kept.append(number); Thing.kept.pop()
    grow(); text += "x"; before.name += ""
    try:
        raise ValueError(before)
    except ValueError as error:
        kept = error
    if number % 100 == 0:
        gc.collect()
import json, collections, threading
json.loads(json.dumps({{"a": [1.5, None, "b"]}}))
del before
counts = [sys.getrefcount(each) for each in (grow, grow.__code__, Thing, "kept", Thing.kept, grow.__code__.co_names)]
print((made, len(grow()), len(text) > 2000, counts))
sys.stdout.flush()
os._exit(0)
"""


def test_everything_that_exists_is_immortal_and_works_as_before() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made, grown, long, counts = eval(done.stdout)
    assert (grown, long) == (2001, True)
    if sharing.can_be_immortal():
        assert made > 5_000
        # 3.14 tells of fewer references to what is borrowed by the stack.
        assert min(counts) >= IMMORTAL - 1
    else:
        assert made == 0
        assert max(counts) < 10_000


def test_the_interpreters_that_have_immortal_objects_are_known() -> None:
    assert sharing.can_be_immortal() == ((3, 12) <= sys.version_info[:2] < (3, 15))


@pytest.mark.parametrize(("what", "wrong"), [("from_address", 16), ("_IMMORTAL", 5)])
def test_an_interpreter_whose_objects_are_not_as_we_know_them_is_left_alone(what: str, wrong: int) -> None:
    """A build with something before each count, or one in which another count is that of an immortal object."""
    change = f"sharing._IMMORTAL = {wrong}"
    if what == "from_address":
        change = f"elsewhere = Memory.from_address({wrong}); Memory.from_address = lambda _: elsewhere"
    source = f"""
import sys; sys.path.insert(0, {str(CHECKOUT)!r})
from runtime.linux import packing, sharing
class Memory(sharing._Memory):
    _type_, _length_ = sharing._Memory._type_, 1 << 45
{change}
sharing._Memory = Memory
print((sharing.can_be_immortal(), sharing.make_immortal(), packing.move_code({{"__main__": "f"}}), packing.fill_gaps()))
"""
    done = subprocess.run([sys.executable, "-ISB", "-c", source], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(False, 0, 0, 0)\n"), done.stderr


@pytest.mark.skipif(not sharing.can_be_immortal(), reason="this Python counts all references")
def test_nothing_is_made_that_would_stay() -> None:
    source = f"""
import sys; sys.path.insert(0, {str(CHECKOUT)!r})
import runtime.cgroups
from runtime.linux import sharing
before = sys.getallocatedblocks()
sharing.make_immortal()
print(sys.getallocatedblocks() - before)
sys.stdout.flush()
"""
    done = subprocess.run([sys.executable, "-ISB", "-c", source], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200


READ = """
for module in list(sys.modules.values()):
    for each in list(vars(module).values()):
        each.__class__
"""
SEARCH = """
for each in classes:
    getattr(each, "nothing_has_this", None)
"""
HASH = """
for each in texts:
    hash(each)
"""
# A global name is looked up by new code of each module, until that code has become quick.
LOOK_UP = """
for module in modules:
    function = type(look_up)(look_up.__code__.replace(), vars(module))
    for _ in range(4):
        function()
"""


def private_kb(prepare: str, work: str = READ) -> int:
    """What a forked child has for itself after it has done something with the large modules that it shares."""
    source = f"""
import sys; sys.path.insert(0, {str(CHECKOUT)!r})
import gc, os, runtime.cgroups, runtime.rootfs
from runtime.linux import sharing
texts = [number * "x" + "unhashed" for number in range(2, 20_000, 4)][:1000]
modules = [type(sys)(f"module{{number}}") for number in range(100)]
for module in modules:
    sys.modules[module.__name__] = module
    vars(module).update({{f"name{{number}}": number for number in range(300)}})
classes = [type(f"Class{{number}}", (), {{"__doc__": "x" * 3000}}) for number in range(200)]
def look_up():
    return len
gc.collect()
{prepare}
gc.freeze()
child = os.fork()
if child:
    os.waitpid(child, 0)
    os._exit(0)
{work}
for line in open("/proc/self/smaps_rollup"):
    if line.startswith("Private_Dirty:"):
        print(line.split()[1], flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sharing.can_be_immortal(), reason="this Python counts all references")
def test_a_child_copies_less_of_what_it_only_reads() -> None:
    assert private_kb("sharing.make_immortal()") < 0.7 * private_kb("")


@pytest.mark.skipif(not sharing.can_be_immortal(), reason="this Python counts all references")
@pytest.mark.parametrize(("work", "few_kb"), [(SEARCH, 200), (HASH, 100), (LOOK_UP, 150)])
def test_what_is_found_out_once_is_known_before_the_fork(work: str, few_kb: int) -> None:
    prepare = "sharing.make_immortal()"
    assert private_kb(prepare, work) - private_kb(prepare, "pass") < few_kb
