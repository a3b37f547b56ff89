"""What a forked child writes to lies together: code that was moved works as before, and gaps are not given out."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.linux import sharing

CHECKOUT = Path(__file__).resolve().parents[4]
BEGIN = f"""
import sys; sys.path.insert(0, {str(CHECKOUT)!r})
import gc, os
from runtime.linux import packing, sharing

def private_kb():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1])

def in_child(work):
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = private_kb()
        work()
        os.write(writer, b"%d" % (private_kb() - before))
        os._exit(0)
    os.wait()
    return int(os.read(reader, 99))
"""
only_with_immortal_objects = pytest.mark.skipif(
    not sharing.can_be_immortal(), reason="this Python counts all references"
)


def run(program: str) -> Any:
    """What the program prints at its end, as Python runs it that a launcher starts."""
    command = [sys.executable, "-ISB", "-c", BEGIN + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


# Code of every kind: of a function, a method, a property, a closure, a generator, and what those make when they run.
KINDS = """
class Thing:
    def __init__(self, name):
        self.name = name
    @property
    def length(self):
        return len(self.name)
    @staticmethod
    def twice(number):
        return sum(each * 2 for each in (number,))

def adder(by):
    def add(to, more=1):
        return to + by + more
    return add

def count(limit):
    for number in range(limit):
        yield lambda: number * limit

def fail():
    try:
        raise ValueError("failed")
    finally:
        done.append(1)

done = []
by_five = adder(5)
begun = count(9)
next(begun)

def all_of_it():
    failed = ""
    try:
        fail()
    except ValueError as error:
        inner = error.__traceback__.tb_next
        failed = (str(error), inner.tb_frame.f_code.co_name, inner.tb_lineno)
    thing = Thing("abc")
    return (thing.length, Thing.twice(4), by_five(1), adder(2)(3, more=4), [each() for each in count(4)], failed)

NAMES = ("Thing.__init__ Thing.length Thing.twice Thing.twice.<locals>.<genexpr> adder adder.<locals>.add "
    "count count.<locals>.<lambda> fail nothing.of_that_name")
"""


def test_moved_code_works_as_before() -> None:
    before, after, rest, places = run(f"""{KINDS}
before = all_of_it()
sharing.make_immortal()
old = [id(each.__code__) for each in (Thing.__init__, by_five, count, fail)]
moved = packing.move_code({{"__main__": NAMES, "no_such_module": "f"}})
gc.freeze()
for _ in range(100):  # until it is specialized
    after = all_of_it()
    gc.collect()
new = [id(each.__code__) for each in (Thing.__init__, by_five, adder(1), count, fail)]
print((before, after, len(list(begun)), (moved, old, new)))
sys.stdout.flush()
os._exit(0)
""")
    assert after == before
    assert rest == 8, "a generator that had begun goes on"
    moved, old, new = places
    if not sharing.can_be_immortal():
        assert moved == 0
        return
    assert set(old).isdisjoint(new)
    assert new[1] == new[2], "closures made before and after are of one code"
    assert max(new) - min(new) < moved < 8192


@only_with_immortal_objects
def test_code_that_somebody_keeps_something_with_stays_where_it_is() -> None:
    """That hangs on it (PyUnstable_Code_SetExtra), counts as a part of it, and is given back with it."""
    moved, kept = run("""
from runtime.linux.ffi import PyDLL, c_int, c_void_p
def f():
    return 1
def g():
    return 2
library = PyDLL(None)
request, set_extra = library["PyUnstable_Eval_RequestCodeExtraIndex"], library["PyUnstable_Code_SetExtra"]
request.argtypes, set_extra.argtypes = (c_void_p,), (c_void_p, c_int, c_void_p)
assert set_extra(id(g.__code__), request(None), None) == 0
sharing.make_immortal()
before = id(f.__code__), id(g.__code__)
packing.move_code({"__main__": "f g"})
print((id(f.__code__) != before[0], id(g.__code__) == before[1]))
sys.stdout.flush()
os._exit(f() + g() - 3)
""")
    assert (moved, kept) == (True, True)


@only_with_immortal_objects
@pytest.mark.parametrize("what", ["jit", "self"])
def test_code_that_refers_to_itself_is_not_moved(what: str) -> None:
    """An interpreter that compiles what runs has in its machine code where that lay."""
    assert run(f"""
from runtime.linux.ffi import PyDLL, c_int, c_void_p
def f():
    return 1
sharing.make_immortal()
before = id(f.__code__)
if {what!r} == "jit":
    sys._jit = type("jit", (), {{"is_enabled": lambda: True}})
else:
    words = packing._Words.from_address(0)
    packing._room(f.__code__)
    (place,) = [each for each in range(before >> 3, (before >> 3) + 30) if words[each] == id(f.__code__.co_filename)]
    words[place] = before + 64
packing.move_code({{"__main__": "f"}})
print(id(f.__code__) == before)
sys.stdout.flush()
os._exit(0)
""")


def test_gaps_are_left_alone_where_pools_are_not_as_we_know_them() -> None:
    """Their sizes say what they are of."""
    assert run("packing._ALIGNED = 32; print(packing.fill_gaps())") == 0


@only_with_immortal_objects
def test_a_child_that_runs_moved_code_copies_few_pages() -> None:
    program = """
sums = "a + " * 100 + "a"
text = "".join(f"def f{number}(a=1): return {sums}\\n" for number in range(2000))
exec(compile(text, "made", "exec"))
names = [f"f{number}" for number in range(0, 2000, 10)]
functions = [globals()[name] for name in names]
sharing.make_immortal()
packing.move_code({"__main__": " ".join(names)} if MOVED else {})
packing.fill_gaps()
gc.freeze()
def work():
    for each in functions:
        each()
        each()
print(in_child(work))
sys.stdout.flush()
os._exit(0)
"""
    assert run("MOVED = True" + program) < 0.5 * run("MOVED = False" + program)


@only_with_immortal_objects
def test_what_is_new_does_not_lie_in_the_gaps_of_what_is_old() -> None:
    program = """
kept = [[(number, size) for number in range(size)] for size in range(1, 400)]
for each in kept:
    del each[::40]
gc.collect()
sharing.make_immortal()
if FILLED:
    assert packing.fill_gaps() > 1500
gc.freeze()
def work():
    made = [(number, number) for number in range(1500)]
print(in_child(work))
sys.stdout.flush()
os._exit(0)
"""
    assert run("FILLED = True" + program) < 0.5 * run("FILLED = False" + program)


def test_gaps_are_left_alone_where_objects_are_not_immortal() -> None:
    found = run(
        "packing.sharing = sharing; packing.can_be_immortal = lambda: False; print(packing.fill_gaps())"
    )
    assert found == 0
