"""keyctl(2): the session keyring, which would otherwise be the runtime's own in every container.

Named after the container, so that an exec finds the one its init made.
"""

from __future__ import annotations

from runtime.linux import constants as c
from runtime.linux.ffi import c_int, c_uint, c_ulong, create_string_buffer
from runtime.linux.libc import syscall

_SYS_keyctl = c.syscall_number("keyctl")
_KEYCTL_GET_KEYRING_ID = 0
_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL_SETPERM = 5
_KEYCTL_DESCRIBE = 6
_KEY_SPEC_SESSION_KEYRING = -3

# linux/keyctl.h and keyrings(7): a byte each for possessor, user, group and others.
KEY_USR_SEARCH = 0x00080000
KEY_OTH_SEARCH = 0x00000008


def join_session_keyring(name: str) -> int:
    """Make the session keyring `name`, or join it if we may search the one there is; its serial number.

    0 where we are in it already. ENOSYS where the kernel has no keys, EDQUOT where the user has too
    many, EACCES for somebody else's.
    """
    return syscall(
        "keyctl(JOIN_SESSION_KEYRING)", _SYS_keyctl, c_int(_KEYCTL_JOIN_SESSION_KEYRING), name.encode()
    )


def session_keyring() -> int:
    """The serial number of the caller's session keyring."""
    serial = c_int(_KEY_SPEC_SESSION_KEYRING)
    return syscall("keyctl(GET_KEYRING_ID)", _SYS_keyctl, c_int(_KEYCTL_GET_KEYRING_ID), serial, c_int(0))


def permissions(serial: int) -> int:
    """The permission bits of a key, from its description "type;uid;gid;perm;description"."""
    buffer = create_string_buffer(4096)
    syscall(
        "keyctl(DESCRIBE)",
        _SYS_keyctl,
        c_int(_KEYCTL_DESCRIBE),
        c_uint(serial),
        buffer,
        c_ulong(len(buffer)),
    )
    return int(buffer.value.split(b";")[3], 16)


def set_permissions(serial: int, bits: int) -> None:
    """KEYCTL_SETPERM: who may do what with a key."""
    syscall("keyctl(SETPERM)", _SYS_keyctl, c_int(_KEYCTL_SETPERM), c_uint(serial), c_uint(bits))
