"""The image: what a warden has loaded lies in one sealed file in memory, which all that it forks map privately.

Modules, classes and code are the same in a warden and in all of its shims, and hardly anybody writes to them.
Mapped MAP_PRIVATE from a file, a process has for itself the pages that it has written to; those are all that is
anonymous of it, however much is imported. (A fork takes as long, and the memory of all together is the same.)
So the heap lies in a memfd while a warden imports:

    begin   a block at the end of the heap becomes a shared mapping of the memfd and is freed: what is allocated
            from now on comes from there, the arenas of Python's small objects too
    seal    what is free in it is taken, for good, so that what is new does not come to lie there; the mapping is made
            private, where it is and with what it holds; nobody can write to the file again

Nothing is copied, so there is no moment in which memory is not what it was. In between nothing may be forked: the
child would go without that memory. Where the C library or the kernel has not what this takes, memory stays
anonymous, and all works as well.
"""

from __future__ import annotations

import fcntl
import posix

from runtime.linux.ffi import Array, PyDLL, c_long, c_size_t, get_errno

_ROOM = 24 << 20  # for all that is ever imported: of addresses, memory is taken when it is used
_LARGEST_GAP, _SMALLEST_GAP = 1 << 20, 16  # bytes
_PAGE = posix.sysconf("SC_PAGE_SIZE")

# What a process that will have an image is executed with. glibc keeps freed blocks apart, seven of each of 64 sizes,
# and they never become one with the free memory beside them: a heap that sees many sizes grows until all are there.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3), and what glibc begins with:
_TRIM_THRESHOLD, _MMAP_MAX = 128 << 10, 65536
_NEVER = (1 << 31) - 1
_PROT_READ_WRITE = 3  # mmap(2)
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = 1, 2, 0x10
_MADV_DONTFORK, _MADV_POPULATE_READ = 10, 22  # madvise(2); the second is Linux 5.14's
_MFD_NOEXEC_SEAL = 8  # Linux 6.3; vm.memfd_noexec=2 demands it
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_RAW = 0  # PYMEM_DOMAIN_RAW: malloc(3)


_all_loaded = PyDLL(None)


class _Longs(Array):  # type: ignore[type-arg]
    _type_ = c_long
    _length_ = 5


def _call(name: str, *arguments: int | _Longs) -> int:
    """A function of C's or Python's library. AttributeError if there is none of that name."""
    function = _all_loaded[name]
    function.restype = c_long
    got: int = function(*[c_long(each) if isinstance(each, int) else each for each in arguments])
    return got


# The memfd, the first address of its mapping and the one after the last, and what makes arenas otherwise.
_begun: tuple[int, int, int, _Longs] | None = None


def begin() -> bool:
    """Have all that is allocated from now on lie in the image; once, early, in a process of one thread.

    False where it cannot be done: nothing has changed then.
    """
    global _begun
    try:
        memory = _memfd()
    except OSError:
        return False
    try:
        first, end = _map_heap(memory)
    except (OSError, MemoryError, AttributeError):  # AttributeError: no mallopt(3), which is glibc's
        posix.close(memory)
        return False
    _call("madvise", first, end - first, _MADV_DONTFORK)
    _begun = memory, first, end, _make_arenas_by_malloc()
    return True


def _memfd() -> int:
    flags = posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING
    try:
        return posix.memfd_create("manor-image", flags | _MFD_NOEXEC_SEAL)
    except OSError:  # EINVAL
        return posix.memfd_create("manor-image", flags)


def _map_heap(memory: int) -> tuple[int, int]:
    """Put `memory` in the place of a block of the heap, and free that; its first address and the one after its last."""
    _set_heap(_NEVER, 0)  # neither beside the heap nor given back from its end
    block = _call("malloc", _ROOM)
    first, end = -(-block // _PAGE) * _PAGE, (block + _ROOM) // _PAGE * _PAGE
    try:
        if not block or end > _heap_end():
            raise MemoryError
        posix.ftruncate(memory, end - first)
        _map(first, end, _MAP_SHARED, memory)
    except (MemoryError, OSError):
        _set_heap(_TRIM_THRESHOLD, _MMAP_MAX)
        raise
    finally:
        _call("free", block)
    return first, end


def _set_heap(trim_threshold: int, most_mappings: int) -> None:
    _call("mallopt", _M_TRIM_THRESHOLD, trim_threshold)
    _call("mallopt", _M_MMAP_MAX, most_mappings)


def _heap_end() -> int:
    return _call("sbrk", 0)


def _map(first: int, end: int, kind: int, memory: int) -> None:
    if _call("mmap", first, end - first, _PROT_READ_WRITE, kind | _MAP_FIXED, memory, 0) == -1:
        raise OSError(get_errno(), "mmap: the image")


def _make_arenas_by_malloc() -> _Longs:
    """Arenas come from mmap(2) otherwise: what did that, to be set again.

    They are still given back by munmap(2), as those must be that exist. One of malloc's does not begin with a page,
    for which munmap refuses it: it stays where it is, as part of the image.
    """
    raw, usual = _Longs(), _Longs()
    _call("PyMem_GetAllocator", _RAW, raw)  # PyMemAllocatorEx: ctx, malloc, calloc, realloc, free
    _call("PyObject_GetArenaAllocator", usual)  # PyObjectArenaAllocator: ctx, alloc, free
    _call("PyObject_SetArenaAllocator", _Longs(raw[0], raw[1], usual[2]))
    return usual


def seal() -> int:
    """Make the image of all that was allocated since `begin`; how many bytes of memory it takes, 0 if there is none.

    Gives unused memory at the end of the heap back in any case. OSError if the mapping cannot be changed.
    """
    global _begun
    if _begun is None:
        trim_heap()
        return 0
    memory, first, end, arenas = _begun
    _begun = None
    _fill_gaps(first, end)
    _map(first, end, _MAP_PRIVATE, memory)
    _call("PyObject_SetArenaAllocator", arenas)
    # From here on the heap may become shorter: when it grows again that is anonymous memory, and not of the file.
    _set_heap(_TRIM_THRESHOLD, _MMAP_MAX)
    trim_heap()
    end = max(first, min(end, _heap_end()))
    posix.ftruncate(memory, end - first)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    used = list(_used(memory, first))
    posix.close(memory)
    for start, stop in used:  # else every child would find its pages one by one
        _call("madvise", start, stop - start, _MADV_POPULATE_READ)
    return sum(stop - start for start, stop in used)


def _fill_gaps(first: int, end: int) -> None:
    """Have malloc(3) give away whatever it has below what was never used: a quarter of the image at least."""
    malloc, free = _all_loaded["malloc"], _all_loaded["free"]
    malloc.restype = c_size_t
    never_used = malloc(c_size_t((end - first) // 4))
    free(c_size_t(never_used))
    if not first <= never_used < end:  # it is not there
        return
    wanted = _LARGEST_GAP
    while wanted > _SMALLEST_GAP:
        block = malloc(c_size_t(wanted))
        if not 0 < block < never_used:
            free(c_size_t(block))
            wanted = wanted // 2 if wanted > _PAGE else wanted - 16


def _used(memory: int, first: int) -> Iterator[tuple[int, int]]:
    """The parts of the image that hold anything, as addresses."""
    offset = 0
    while True:
        try:
            start = posix.lseek(memory, offset, posix.SEEK_DATA)
            offset = posix.lseek(memory, start, posix.SEEK_HOLE)
        except OSError:  # ENXIO: there is no more
            return
        yield first + start, first + offset


def trim_heap() -> None:
    """malloc_trim(3): give unused pages of the heap back, which need not be mapped again in every child."""
    try:
        _call("malloc_trim", 0)
    except AttributeError:
        pass  # glibc's; musl has none
