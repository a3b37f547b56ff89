"""What a forked process writes to, brought together before the fork, so that it has few pages to copy.

    code    is rewritten as it runs (PEP 659: each instruction counts, and becomes one for what it has met). Most of
            what a module has a process never runs, and it lies in between: `move_code` lays together what is run.
    gaps    that something freed has left in pages which are otherwise only read are what is given to new objects first:
            `fill_gaps` takes them, for good, so that these lie together.

Both are for a process whose objects are immortal (`runtime/linux/sharing.py`), and neither is undone.
"""

from __future__ import annotations

import gc
import sys

from runtime.linux.ffi import Array, PyDLL, c_size_t, c_ulong
from runtime.linux.sharing import can_be_immortal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import CodeType, FunctionType
    from typing import Any

_PAGE = 4096
_ALIGNED, _WORD = 16, 8
# Objects/obmalloc.c: pools of blocks of one size, up to 512 bytes; a pool begins with how many are taken.
_POOL, _POOL_HEADER, _LARGEST = 16 << 10, 48, 512
_FEW = 8  # blocks of a pool that has just been begun: this module takes and gives back some of its own
_MOST_GAPS = 1 << 16

_FunctionType = type(can_be_immortal)
_CodeType = type(can_be_immortal.__code__)


class _Words(Array):  # type: ignore[type-arg]
    """All memory, in units of eight bytes."""

    _type_ = c_ulong
    _length_ = 1 << 44


def move_code(wanted: Mapping[str, str]) -> int:
    """Lay the code of functions side by side, in the order of `wanted`: their qualified names, by module.

    For after `sharing.make_immortal`: what is moved stays where it was as well. What runs now runs on there. How many
    bytes were moved; names that nothing has are passed over.
    """
    if not can_be_immortal() or _compiles():
        return 0
    functions: list[Any] = [
        each for each in gc.get_objects() if type(each) is _FunctionType and each.__module__ in wanted
    ]
    codes: dict[tuple[str, str], dict[int, CodeType]] = {}
    for each in functions:
        for code in _with_inner(each.__code__):
            codes.setdefault((each.__module__, code.co_qualname), {})[id(code)] = code
    chosen: dict[int, CodeType] = {}
    for module, names in wanted.items():
        for name in names.split():
            chosen |= {
                place: code for place, code in codes.get((module, name), {}).items() if _can_move(code)
            }
    moved = _copy(chosen)
    for each in functions:
        _redirect(each, moved)
        for code in _with_inner(each.__code__):
            _redirect(code.co_consts, moved)
    return sum(map(_room, chosen.values()))


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions that it makes."""
    yield code
    for constant in code.co_consts:
        if type(constant) is _CodeType:
            yield from _with_inner(constant)


def _compiles() -> bool:
    """Whether what runs often becomes machine code, which refers to the code that it was made of (3.14, PEP 744)."""
    jit = getattr(sys, "_jit", None)
    return jit is not None and jit.is_enabled()


def _can_move(code: CodeType) -> bool:
    """Whether it is the plain object that we know: nobody keeps something with it, and it has no address in itself."""
    first, size = id(code), code.__sizeof__()
    code_bytes: bytes = code._co_code_adaptive  # type: ignore[attr-defined] # noqa: SLF001 - co_code would be kept
    known = _CodeType.__basicsize__ + len(code_bytes)
    inside = range(first, first + size)
    words = _Words.from_address(0)[first >> 3 : (first + size) >> 3]
    return size == -(-known // _WORD) * _WORD and not any(each in inside for each in words)


def _room(code: CodeType) -> int:
    return -(-code.__sizeof__() // _ALIGNED) * _ALIGNED


def _copy(codes: Mapping[int, CodeType]) -> dict[int, int]:
    """Where each is now, by where it was. It refers to itself nowhere, and what it refers to is immortal."""
    malloc, copy = PyDLL(None)["malloc"], PyDLL(None)["memcpy"]
    malloc.restype = copy.restype = c_size_t
    block = malloc(c_size_t(sum(map(_room, codes.values())) + 2 * _PAGE))
    if not block:
        return {}
    place = -(-block // _PAGE) * _PAGE
    moved = {}
    for old, code in codes.items():
        copy(c_size_t(place), c_size_t(old), c_size_t(code.__sizeof__()))
        moved[old] = place
        place += _room(code)
    return moved


def _redirect(holder: FunctionType | tuple[object, ...], moved: Mapping[int, int]) -> None:
    """Have it refer to what was moved where that is now."""
    words = _Words.from_address(0)
    first = id(holder) >> 3
    for place in range(first, first + (holder.__sizeof__() >> 3)):
        target = moved.get(words[place])
        if target is not None:
            words[place] = target


def fill_gaps() -> int:
    """Take what is free among Python's small objects; how many blocks that were."""
    # No blocks are counted by an interpreter without its own allocator; a debug build's has room around them.
    if not can_be_immortal() or not sys.getallocatedblocks() or hasattr(sys, "gettotalrefcount"):
        return 0
    functions = PyDLL(None)
    allocate, free = functions["PyObject_Malloc"], functions["PyObject_Free"]
    allocate.restype = c_size_t
    words = _Words.from_address(0)
    taken = 0
    for size in range(_ALIGNED, _LARGEST + 1, _ALIGNED):
        wanted = c_size_t(size)
        while taken < _MOST_GAPS:
            block = allocate(wanted)
            pool = (block & -_POOL) >> 3
            if words[pool + 4] >> 32 != size // _ALIGNED - 1:  # the sizes that it is for: it is no such pool
                free(c_size_t(block))
                return taken
            begun = words[pool + 5] & 0xFFFFFFFF <= _POOL_HEADER + _FEW * size
            if begun:
                free(c_size_t(block))  # there was no gap left, so a pool was begun
                break
            taken += 1
    return taken
