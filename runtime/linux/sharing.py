"""Memory that a process shares with the children it forks, and how more of it stays shared.

A page is copied when either writes to it, and CPython writes where it only reads:

* Every use of an object counts up and down in it. From Python 3.12 on an object can be immortal (PEP 683), and is not
  counted; the interpreter has no function for it, so the count is set here.
* What is found out once is kept with what it is about: the hash of a text, the version of a class or of a namespace,
  by which code that has looked something up knows that nothing has changed. All of that is found out here.
* Code is rewritten while it runs, and what is new lies in the gaps of what is old: `runtime/linux/packing.py`.
"""

from __future__ import annotations

import gc
import sys

from runtime.linux.ffi import Array, c_uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

# Include/refcount.h: what the lower half of ob_refcnt holds in an immortal object. 3.14 knows more values, and
# takes this one as well; there is no knowing of later ones.
_IMMORTAL = 0xFFFFFFFF
_KNOWN = ((3, 12), (3, 13), (3, 14))
_BATCH = 1024  # objects, so that the lists of them are short
_CodeType = type(sys._getframe().f_code)  # noqa: SLF001 - `types` has nothing else that we need


class _Memory(Array):  # type: ignore[type-arg]
    """All of it, in units of four bytes: an object for each count would take twice as long."""

    _type_ = c_uint
    _length_ = 1 << 45


def can_be_immortal() -> bool:
    """Whether this interpreter has immortal objects as we know them: not 3.11, not a build without the GIL.

    Nor one for debugging. Whether that holds of this very build is tried out with an object of our own.
    """
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    wide = sys.maxsize > 2**32 and sys.byteorder == "little"
    plain = with_gil and wide and not hasattr(sys, "gettotalrefcount")
    return sys.version_info[:2] in _KNOWN and plain and _counts_as_known()


def _counts_as_known() -> bool:
    """Whether the count of an object is where we look for it, and stays as it is in an immortal one."""
    memory = _Memory.from_address(0)
    tried = object()
    place = id(tried) >> 2
    before = memory[place]
    held = [tried, tried]
    if memory[place] != before + len(held):
        return False
    memory[place] = _IMMORTAL
    held += [tried, tried]
    return bool(memory[place] == _IMMORTAL)


def make_immortal() -> int:
    """Make every object immortal that exists now: for one that is about to fork, and to end by _exit(2).

    Whatever is made later is not concerned. How many they were; 0 where it cannot be done.
    """
    if not can_be_immortal():
        return 0
    _number_namespaces()
    sys._clear_type_cache()  # noqa: SLF001 - it holds names that were looked up once, and frees them in the child
    memory = _Memory.from_address(0)
    found = 0
    waiting = gc.get_objects()  # containers; the rest hangs on them
    while waiting:
        fresh, batch = [], waiting[-_BATCH:]
        del waiting[-_BATCH:]
        for each in batch:
            place = id(each) >> 2
            if memory[place] != _IMMORTAL:
                memory[place] = _IMMORTAL
                fresh.append(each)
        found += len(fresh)
        waiting += gc.get_referents(*fresh)
        for each in fresh:
            kind = type(each)
            if kind is str:
                hash(each)
            elif kind is _CodeType:  # the two kinds that do not tell the collector of all they hold
                waiting += _held_by_code(each)
            elif kind is dict:
                waiting += each
            elif issubclass(kind, type):
                getattr(each, "manor", None)  # a search for what none of them has gives it a version
    return found


def _held_by_code(code: CodeType) -> list[object]:
    # Not the names of variables: they are immortal by themselves, and asking for them makes tuples that stay.
    texts = (code.co_filename, code.co_name, code.co_qualname)
    return [code.co_names, code.co_consts, *texts, code.co_linetable, code.co_exceptiontable]


def _number_namespaces() -> None:
    """Give the namespace of every module its version, as the first look-up by code that has become quick would."""
    function: Any = type(_look_up)
    for module in [each for each in sys.modules.values() if type(each) is type(sys)]:  # `typing` adds classes
        look_up = function(_look_up.__code__.replace(), vars(module))
        for _ in range(4):
            look_up()


def _look_up() -> object:
    return len
