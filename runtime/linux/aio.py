"""fdatasync(2) that nobody has to wait for, by the kernel's asynchronous I/O (io_submit(2), IOCB_CMD_FDSYNC).

The kernel syncs in a thread of its own and says so at an eventfd, so that a process with one thread, which
must stay so to enter user namespaces, need not stand still for a disk. (io_uring would do, too, but its
workers are threads of the caller, and many a node forbids it.) Linux 4.18 for files of every kind.
"""

from __future__ import annotations

import os
import struct

from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.ffi import addressof, byref, c_long, c_ulong, c_void_p, create_string_buffer
from runtime.linux.libc import syscall

_SYS_io_setup = c.syscall_number("io_setup")
_SYS_io_destroy = c.syscall_number("io_destroy")
_SYS_io_submit = c.syscall_number("io_submit")
_SYS_io_getevents = c.syscall_number("io_getevents")

# linux/aio_abi.h: data; key and rw_flags (whose order depends on the machine, both 0); opcode, priority, fd;
# buf, nbytes, offset, reserved; flags, resfd.
_IOCB = struct.Struct("=QQHhIQQqQII")
_EVENT = struct.Struct("=QQqq")  # data, obj, res, res2
_KEPT = (
    create_string_buffer(_IOCB.size),
    create_string_buffer(_EVENT.size),
)  # so that there are classes of their sizes
_IOCB_CMD_FDSYNC = 3
_IOCB_FLAG_RESFD = 1


class FileSync:
    """One sync at a time. Whoever makes it calls `close`; a process that ends without waits for what is under way.

    OSError: ENOSYS without the system calls, EAGAIN when the node has too many users of them (fs.aio-max-nr).
    """

    __slots__ = ("_context", "_event", "_iocb", "_ready")

    def __init__(self) -> None:
        context = c_ulong(0)
        syscall("io_setup", _SYS_io_setup, c_long(1), byref(context))
        self._context = context
        self._ready = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._iocb = create_string_buffer(_IOCB.size)
        self._event = create_string_buffer(_EVENT.size)

    def begin(self, fd: int) -> None:
        """Begin to write what `fd`'s file has to the disk; `fileno` becomes readable when it is there. OSError."""
        ready = self._ready.fileno()
        _IOCB.pack_into(self._iocb, 0, 0, 0, _IOCB_CMD_FDSYNC, 0, fd, 0, 0, 0, 0, _IOCB_FLAG_RESFD, ready)
        pointer = c_void_p(addressof(self._iocb))
        syscall("io_submit", _SYS_io_submit, self._context, c_long(1), byref(pointer))

    def fileno(self) -> int:
        """The descriptor to wait at."""
        return self._ready.fileno()

    def finish(self) -> None:
        """After `fileno` has become readable: OSError if the file could not be written (EIO, ENOSPC …)."""
        os.eventfd_read(self._ready.fileno())
        syscall("io_getevents", _SYS_io_getevents, self._context, c_long(1), c_long(1), self._event, None)
        _data, _object, result, _second = _EVENT.unpack(self._event.raw)
        if result < 0:
            raise OSError(-result, f"fdatasync: {os.strerror(-result)}")

    def close(self) -> None:
        """Give everything back; it waits for a sync that is under way. A second call does nothing."""
        if not self._ready.closed:
            self._ready.close()
            syscall("io_destroy", _SYS_io_destroy, self._context)
