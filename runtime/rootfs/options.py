"""Mount options: what the words in `mounts[].options` mean, as tables and one pure function.

The words and their effects are runc 1.5's, which are mount(8)'s where that is clear. A word that no table
knows belongs to the file system ("size=64m").
"""

from __future__ import annotations

import os

from runtime.linux import mount as m
from runtime.record import Record

SET, CLEAR = False, True

PROPAGATION = {
    "private": (m.MS_PRIVATE, False),
    "rprivate": (m.MS_PRIVATE, True),
    "slave": (m.MS_SLAVE, False),
    "rslave": (m.MS_SLAVE, True),
    "shared": (m.MS_SHARED, False),
    "rshared": (m.MS_SHARED, True),
    "unbindable": (m.MS_UNBINDABLE, False),
    "runbindable": (m.MS_UNBINDABLE, True),
}

_FLAGS = {
    "async": (CLEAR, m.MS_SYNCHRONOUS),
    "atime": (CLEAR, m.MS_NOATIME),
    "bind": (SET, m.MS_BIND),
    "defaults": (SET, 0),
    "dev": (CLEAR, m.MS_NODEV),
    "diratime": (CLEAR, m.MS_NODIRATIME),
    "dirsync": (SET, m.MS_DIRSYNC),
    "exec": (CLEAR, m.MS_NOEXEC),
    "iversion": (SET, m.MS_I_VERSION),
    "lazytime": (SET, m.MS_LAZYTIME),
    "loud": (CLEAR, m.MS_SILENT),
    "mand": (SET, m.MS_MANDLOCK),
    "noatime": (SET, m.MS_NOATIME),
    "nodev": (SET, m.MS_NODEV),
    "nodiratime": (SET, m.MS_NODIRATIME),
    "noexec": (SET, m.MS_NOEXEC),
    "noiversion": (CLEAR, m.MS_I_VERSION),
    "nolazytime": (CLEAR, m.MS_LAZYTIME),
    "nomand": (CLEAR, m.MS_MANDLOCK),
    "norelatime": (CLEAR, m.MS_RELATIME),
    "nostrictatime": (CLEAR, m.MS_STRICTATIME),
    "nosuid": (SET, m.MS_NOSUID),
    "nosymfollow": (SET, m.MS_NOSYMFOLLOW),
    "rbind": (SET, m.MS_BIND | m.MS_REC),
    "relatime": (SET, m.MS_RELATIME),
    "remount": (SET, m.MS_REMOUNT),
    "ro": (SET, m.MS_RDONLY),
    "rw": (CLEAR, m.MS_RDONLY),
    "silent": (SET, m.MS_SILENT),
    "strictatime": (SET, m.MS_STRICTATIME),
    "suid": (CLEAR, m.MS_NOSUID),
    "sync": (SET, m.MS_SYNCHRONOUS),
    "symfollow": (CLEAR, m.MS_NOSYMFOLLOW),
}

# For a mount and everything below it: mount_setattr(2) with AT_RECURSIVE.
_RECURSIVE = {
    "rro": (SET, m.MOUNT_ATTR_RDONLY),
    "rrw": (CLEAR, m.MOUNT_ATTR_RDONLY),
    "rnosuid": (SET, m.MOUNT_ATTR_NOSUID),
    "rsuid": (CLEAR, m.MOUNT_ATTR_NOSUID),
    "rnodev": (SET, m.MOUNT_ATTR_NODEV),
    "rdev": (CLEAR, m.MOUNT_ATTR_NODEV),
    "rnoexec": (SET, m.MOUNT_ATTR_NOEXEC),
    "rexec": (CLEAR, m.MOUNT_ATTR_NOEXEC),
    "rnodiratime": (SET, m.MOUNT_ATTR_NODIRATIME),
    "rdiratime": (CLEAR, m.MOUNT_ATTR_NODIRATIME),
    "rrelatime": (SET, m.MOUNT_ATTR_RELATIME),
    "rnorelatime": (CLEAR, m.MOUNT_ATTR_RELATIME),
    "rnoatime": (SET, m.MOUNT_ATTR_NOATIME),
    "ratime": (CLEAR, m.MOUNT_ATTR_NOATIME),
    "rstrictatime": (SET, m.MOUNT_ATTR_STRICTATIME),
    "rnostrictatime": (CLEAR, m.MOUNT_ATTR_STRICTATIME),
    "rnosymfollow": (SET, m.MOUNT_ATTR_NOSYMFOLLOW),
    "rsymfollow": (CLEAR, m.MOUNT_ATTR_NOSYMFOLLOW),
}

ID_MAPPED = {"idmap": False, "ridmap": True}  # and whether for the mounts below as well
COPY_UP = "tmpcopyup"

_ATTRIBUTES = (
    (m.MS_RDONLY, m.MOUNT_ATTR_RDONLY),
    (m.MS_NOSUID, m.MOUNT_ATTR_NOSUID),
    (m.MS_NODEV, m.MOUNT_ATTR_NODEV),
    (m.MS_NOEXEC, m.MOUNT_ATTR_NOEXEC),
    (m.MS_NODIRATIME, m.MOUNT_ATTR_NODIRATIME),
    (m.MS_NOSYMFOLLOW, m.MOUNT_ATTR_NOSYMFOLLOW),
)
_ATIME_FLAGS = m.MS_NOATIME | m.MS_RELATIME | m.MS_STRICTATIME | m.MS_NODIRATIME
_PLAIN_ATTRIBUTES = (
    m.MOUNT_ATTR_RDONLY
    | m.MOUNT_ATTR_NOSUID
    | m.MOUNT_ATTR_NODEV
    | m.MOUNT_ATTR_NOEXEC
    | m.MOUNT_ATTR_NOSYMFOLLOW
)
_ATIME_ATTRIBUTES = m.MOUNT_ATTR__ATIME | m.MOUNT_ATTR_NODIRATIME

# Flags of mount(2) that belong to the file system, not to the mount, and their names for fsconfig(2).
_FILESYSTEM_FLAGS = (
    (m.MS_RDONLY, "ro"),
    (m.MS_SYNCHRONOUS, "sync"),
    (m.MS_MANDLOCK, "mand"),
    (m.MS_DIRSYNC, "dirsync"),
    (m.MS_LAZYTIME, "lazytime"),
    (m.MS_I_VERSION, "iversion"),
)


class AttributeChange(Record):
    """Arguments of mount_setattr(2): `clear` is taken away first, then `set` is added."""

    set: int = 0
    clear: int = 0


class MountOptions(Record):
    """A parsed option list: MS_* `flags` set and `cleared` by name, the rest by kind."""

    flags: int = 0
    cleared: int = 0
    propagation: tuple[tuple[int, bool], ...] = ()
    recursive: AttributeChange = AttributeChange()
    copy_up: bool = False
    id_mapped: bool = False
    id_mapped_recursively: bool = False
    data: tuple[str, ...] = ()

    @property
    def bind(self) -> bool:
        """Whether "bind" or "rbind" is among them."""
        return bool(self.flags & m.MS_BIND)


def parse_options(options: tuple[str, ...]) -> MountOptions:
    """The meaning of `options`; a later word wins over an earlier one that says the contrary."""
    flags = cleared = recursive_set = recursive_clear = 0
    propagation: list[tuple[int, bool]] = []
    id_mapped: list[bool] = []
    data: list[str] = []
    for option in options:
        if option in _FLAGS:
            clears, bits = _FLAGS[option]
            flags, cleared = (flags & ~bits, cleared | bits) if clears else (flags | bits, cleared & ~bits)
        elif option in PROPAGATION:
            propagation.append(PROPAGATION[option])
        elif option in _RECURSIVE:
            clears, bits = _RECURSIVE[option]
            if clears:
                recursive_set, recursive_clear = recursive_set & ~bits, recursive_clear | bits
            else:
                recursive_set, recursive_clear = recursive_set | bits, recursive_clear & ~bits
            if bits & m.MOUNT_ATTR__ATIME == bits:
                recursive_clear |= m.MOUNT_ATTR__ATIME  # a choice: what was chosen must go first
        elif option in ID_MAPPED:
            id_mapped.append(ID_MAPPED[option])
        elif option and option != COPY_UP:
            data.append(option)
    return MountOptions(
        flags=flags,
        cleared=cleared,
        propagation=tuple(propagation),
        recursive=AttributeChange(recursive_set, recursive_clear),
        copy_up=COPY_UP in options,
        id_mapped=bool(id_mapped),
        id_mapped_recursively=bool(id_mapped) and id_mapped[-1],
        data=tuple(data),
    )


def new_mount_attributes(options: MountOptions) -> int:
    """MOUNT_ATTR_* of a new file system's mount: relatime unless another access time is asked for, as mount(2)."""
    attributes = _attributes(options.flags)
    if options.flags & m.MS_STRICTATIME:
        attributes |= m.MOUNT_ATTR_STRICTATIME
    elif options.flags & m.MS_NOATIME:
        attributes |= m.MOUNT_ATTR_NOATIME
    return attributes & ~options.recursive.clear | options.recursive.set


def bind_change(options: MountOptions) -> AttributeChange | None:
    """What to change on a bind mount; None to keep all that the source's mount has.

    As in runc, a list with any such word in it says everything: flags of the source's mount that are not
    in it go away ("mount --bind -o …" in spirit). The access time is kept unless a word names one.
    """
    flags = options.flags & ~(m.MS_BIND | m.MS_REC | m.MS_REMOUNT)
    if not flags and not options.cleared:
        return None
    clear = _PLAIN_ATTRIBUTES
    added = _attributes(flags)
    if flags & _ATIME_FLAGS:
        clear |= _ATIME_ATTRIBUTES
        if flags & m.MS_STRICTATIME:
            added |= m.MOUNT_ATTR_STRICTATIME
        elif flags & m.MS_NOATIME:
            added |= m.MOUNT_ATTR_NOATIME
    return AttributeChange(added, clear)


def gentle_bind_change(options: MountOptions) -> AttributeChange:
    """The same, for flags that a user namespace has locked: taking away only what was named, or is never locked."""
    wanted = bind_change(options) or AttributeChange()
    named = _attributes(options.cleared) | m.MOUNT_ATTR_NOSYMFOLLOW
    if wanted.clear & m.MOUNT_ATTR__ATIME:
        named |= _ATIME_ATTRIBUTES
    return AttributeChange(wanted.set, named)


def unwanted_atime(options: MountOptions) -> int:
    """The access times, as ST_* of statvfs(3), that were named to be taken away: no mount may still have one."""
    pairs = (
        (m.MS_NOATIME, os.ST_NOATIME),
        (m.MS_NODIRATIME, os.ST_NODIRATIME),
        (m.MS_RELATIME, os.ST_RELATIME),
    )
    unwanted = 0
    for flag, shown in pairs:
        if options.cleared & flag:
            unwanted |= shown
    return unwanted


def _attributes(flags: int) -> int:
    made = 0
    for flag, attribute in _ATTRIBUTES:
        if flags & flag:
            made |= attribute
    return made


def filesystem_options(options: MountOptions) -> tuple[tuple[str, str | None], ...]:
    """Keys and values for fsconfig(2), in order: words without "=" have no value."""
    made: list[tuple[str, str | None]] = [
        (name, None) for flag, name in _FILESYSTEM_FLAGS if options.flags & flag
    ]
    for text in options.data:
        for option in text.split(","):  # one word may hold several, as the kernel would see them
            key, equals, value = option.partition("=")
            if key:
                made.append((key, value if equals else None))
    return tuple(made)


def mount2_options(settings: tuple[tuple[str, str | None], ...]) -> tuple[int, str]:
    """The same for mount(2): MS_* flags, and what is left in one text."""
    flags, words = 0, []
    for key, value in settings:
        flag = next((flag for flag, name in _FILESYSTEM_FLAGS if (name, None) == (key, value)), 0)
        flags |= flag
        if not flag:
            words.append(key if value is None else f"{key}={value}")
    return flags, ",".join(words)
