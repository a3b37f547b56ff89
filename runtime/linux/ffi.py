"""The part of ctypes that we use, made from the C module below it; names and meanings are ctypes's own.

`ctypes` and what it loads run for 2 ms, a twelfth of a cold command, and take 0.4 MB: for wide characters, structures
in the other byte order and callbacks, none of which is needed here.
"""

from __future__ import annotations

from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    Array,
    CFuncPtr,
    _SimpleCData,
    addressof,
    byref,
    dlopen,
    get_errno,
    sizeof,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Array",
    "addressof",
    "byref",
    "get_errno",
    "sizeof",
]


class c_char(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801 - ctypes's name, as all of these
    _type_ = "c"


class c_int(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "i"


class c_uint(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "I"


class c_long(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "l"


class c_ulong(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "L"


class c_uint64(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "Q"


class c_char_p(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "z"


class c_void_p(_SimpleCData):  # type: ignore[type-arg]  # noqa: N801
    _type_ = "P"


c_size_t, c_ssize_t = c_ulong, c_long  # on every Linux


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_PYTHONAPI | FUNCFLAG_USE_ERRNO
    _restype_ = c_int


class PyDLL:
    """A library, or with None all that is loaded. A call of a function of it keeps the GIL, and errno for `get_errno`.

    OSError: it cannot be loaded. AttributeError: it has no function of that name.
    """

    def __init__(self, name: str | None) -> None:
        self._handle = dlopen(name, 0)  # type: ignore[arg-type]  # RTLD_LOCAL; None is dlopen(3)'s NULL

    def __getitem__(self, name: str) -> Any:
        """The function `name`, an object of its own."""
        return _Function((name, self))  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """The function `name`, the same each time."""
        function = self[name]
        setattr(self, name, function)
        return function


pythonapi = PyDLL(None)


def create_string_buffer(content: int | bytes, size: int | None = None) -> Any:
    """An array of c_char, `size` bytes that hold `content` (one more than it has), or that many zeros.

    Each size is a class, of 3 KB, that is made when there is none: who needs one often, or in a shim, keeps a buffer.
    """
    if isinstance(content, int):
        return (c_char * content)()
    buffer: Any = (c_char * (len(content) + 1 if size is None else size))()
    buffer.value = content
    return buffer


def string_at(address: int, size: int) -> bytes:
    """The `size` bytes at `address`."""
    memory: Any = (c_char * size).from_address(address)
    content: bytes = memory.raw
    return content


def memmove(address: int, content: bytes) -> None:
    """Write `content` to `address`."""
    pythonapi.memmove(c_void_p(address), content, c_size_t(len(content)))
