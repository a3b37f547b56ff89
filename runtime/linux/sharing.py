"""Memory that a process shares with the children it forks, and how more of it stays shared.

A page is copied when either writes to it, and CPython writes where it only reads: every use of an object
counts up and down in it. From Python 3.12 on an object can be immortal (PEP 683), and is not counted; the
interpreter has no function for it, so the count is set here. It saves a forked process 0.8 of 2 MB.
"""

from __future__ import annotations

import gc
import sys

from runtime.linux.ffi import c_uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

# Include/refcount.h: what the lower half of ob_refcnt holds in an immortal object. 3.14 knows more values, and
# takes this one as well; there is no knowing of later ones.
_IMMORTAL = 0xFFFFFFFF
_KNOWN = ((3, 12), (3, 13), (3, 14))

_count_of = c_uint.from_address
_CodeType = type(sys._getframe().f_code)  # noqa: SLF001 - `types` has nothing else that we need


def can_be_immortal() -> bool:
    """Whether this interpreter has immortal objects as we know them: not 3.11, not a build without the GIL."""
    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    wide = sys.maxsize > 2**32 and sys.byteorder == "little"
    return sys.version_info[:2] in _KNOWN and with_gil and wide


def make_immortal() -> int:
    """Make every object immortal that exists now: for one that is about to fork, and to end by _exit(2).

    Whatever is made later is not concerned. How many they were; 0 where it cannot be done.
    """
    if not can_be_immortal():
        return 0
    found = 0
    waiting = gc.get_objects()  # containers; the rest hangs on them
    while waiting:
        each = waiting.pop()
        count = _count_of(id(each))
        if count.value == _IMMORTAL:
            continue
        count.value = _IMMORTAL
        found += 1
        if type(each) is _CodeType:  # the two kinds that do not tell the collector of all they hold
            waiting += _held_by_code(each)
        elif type(each) is dict:
            waiting += each
        waiting += gc.get_referents(each)
    return found


def _held_by_code(code: CodeType) -> list[object]:
    # Not the names of variables: they are immortal by themselves, and asking for them makes tuples that stay.
    texts = (code.co_filename, code.co_name, code.co_qualname)
    return [code.co_names, code.co_consts, *texts, code.co_linetable, code.co_exceptiontable]
