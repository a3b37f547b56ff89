"""Our part of ctypes means what ctypes means."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import weakref

import pytest

from runtime.linux import aio, ffi, mount, process, title


@pytest.mark.parametrize(
    "name",
    [
        "c_char",
        "c_int",
        "c_uint",
        "c_long",
        "c_ulong",
        "c_uint64",
        "c_size_t",
        "c_ssize_t",
        "c_char_p",
        "c_void_p",
    ],
)
def test_types_have_the_size_and_the_signs_that_ctypes_gives_them(name: str) -> None:
    ours, theirs = getattr(ffi, name), getattr(ctypes, name)
    assert ffi.sizeof(ours) == ctypes.sizeof(theirs)
    if theirs not in (ctypes.c_char, ctypes.c_char_p):
        assert ours(-1).value == theirs(-1).value


@pytest.mark.parametrize("arguments", [(b"abc",), (b"a\0c", 5), (b"", 1), (7,), (b"abc", 3)])
def test_a_buffer_holds_what_ctypes_would_put_there(arguments: tuple[bytes | int, ...]) -> None:
    assert ffi.create_string_buffer(*arguments).raw == ctypes.create_string_buffer(*arguments).raw  # type: ignore[arg-type]


def test_memory_is_read_and_written_at_an_address() -> None:
    buffer = ffi.create_string_buffer(b"a\0cdef")
    ffi.memmove(ffi.addressof(buffer) + 1, b"B\0D")
    assert ffi.string_at(ffi.addressof(buffer), 7) == b"aB\0Def\0"


def test_errno_of_a_call_is_kept_until_the_next() -> None:
    close = ffi.PyDLL(None)["close"]
    assert close(-1) == -1
    os.stat("/")  # uses the C library's own
    assert ffi.get_errno() == errno.EBADF


def test_a_function_is_the_same_by_name_and_a_new_one_by_item() -> None:
    library = ffi.PyDLL(None)
    assert library.getpid is library.getpid
    assert library["getpid"] is not library["getpid"]
    assert library.getpid() == os.getpid()


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="no_such_function"):
        ffi.PyDLL(None)["no_such_function"]
    with pytest.raises(OSError, match="no_such_library"):
        ffi.PyDLL("no_such_library.so")


@pytest.mark.parametrize(
    "size",
    [
        process._CLONE_ARGS.size,
        16,
        aio._IOCB.size,
        aio._EVENT.size,
        title._MM_MAP.size,
        mount._STATFS_ROOM,
    ],
)
def test_classes_of_buffers_that_every_shim_makes_are_there_before_and_stay(size: int) -> None:
    kept = weakref.ref(type(ffi.create_string_buffer(size)))
    gc.collect()
    assert kept() is not None
