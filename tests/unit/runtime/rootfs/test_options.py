"""What the words of a mount's option list come to."""

from __future__ import annotations

import os

import pytest

from runtime.linux import mount as m
from runtime.rootfs.options import (
    AttributeChange,
    bind_change,
    filesystem_options,
    gentle_bind_change,
    mount2_options,
    new_mount_attributes,
    parse_options,
    unwanted_atime,
)

PLAIN = (
    m.MOUNT_ATTR_RDONLY
    | m.MOUNT_ATTR_NOSUID
    | m.MOUNT_ATTR_NODEV
    | m.MOUNT_ATTR_NOEXEC
    | m.MOUNT_ATTR_NOSYMFOLLOW
)
ATIME = m.MOUNT_ATTR__ATIME | m.MOUNT_ATTR_NODIRATIME


def test_what_no_table_knows_is_for_the_file_system() -> None:
    options = parse_options(("nosuid", "mode=755", "size=64m", "newinstance"))
    assert options.data == ("mode=755", "size=64m", "newinstance")
    assert filesystem_options(options) == (("mode", "755"), ("size", "64m"), ("newinstance", None))


def test_words_joined_by_commas_are_several_options_of_the_file_system() -> None:
    assert filesystem_options(parse_options(("mode=755,size=1m", "", "x=a=b"))) == (
        ("mode", "755"),
        ("size", "1m"),
        ("x", "a=b"),
    )


def test_flags_of_a_file_system_are_its_options_as_well() -> None:
    options = parse_options(("ro", "sync", "dirsync", "lazytime", "nosuid", "gid=5"))
    assert filesystem_options(options) == (
        ("ro", None),
        ("sync", None),
        ("dirsync", None),
        ("lazytime", None),
        ("gid", "5"),
    )


def test_for_mount2_flags_of_a_file_system_are_no_words() -> None:
    settings = filesystem_options(parse_options(("ro", "lowerdir=/a:/b", "userxattr", "sync", "nosuid")))
    assert mount2_options(settings) == (m.MS_RDONLY | m.MS_SYNCHRONOUS, "lowerdir=/a:/b,userxattr")
    assert mount2_options((("ro", "1"),)) == (0, "ro=1")


@pytest.mark.parametrize(
    ("words", "attributes"),
    [
        ((), 0),
        (("defaults",), 0),
        (("ro", "nosuid", "nodev", "noexec"), PLAIN & ~m.MOUNT_ATTR_NOSYMFOLLOW),
        (("ro", "rw"), 0),
        (("rw", "ro"), m.MOUNT_ATTR_RDONLY),
        (("nosuid", "suid"), 0),
        (("relatime",), 0),
        (("noatime",), m.MOUNT_ATTR_NOATIME),
        (("noatime", "atime"), 0),
        (("strictatime",), m.MOUNT_ATTR_STRICTATIME),
        (("noatime", "strictatime"), m.MOUNT_ATTR_STRICTATIME),
        (("nodiratime",), m.MOUNT_ATTR_NODIRATIME),
        (("nosymfollow",), m.MOUNT_ATTR_NOSYMFOLLOW),
        (("rro", "rnoexec"), m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOEXEC),
        (("ro", "rrw"), 0),
    ],
)
def test_attributes_of_a_new_file_system(words: tuple[str, ...], attributes: int) -> None:
    assert new_mount_attributes(parse_options(words)) == attributes


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (("bind",), None),
        (("rbind", "rprivate"), None),
        (("bind", "rw"), AttributeChange(0, PLAIN)),
        (("bind", "ro"), AttributeChange(m.MOUNT_ATTR_RDONLY, PLAIN)),
        (("bind", "nosuid"), AttributeChange(m.MOUNT_ATTR_NOSUID, PLAIN)),
        (("bind", "noatime"), AttributeChange(m.MOUNT_ATTR_NOATIME, PLAIN | ATIME)),
        (("bind", "relatime"), AttributeChange(0, PLAIN | ATIME)),
        (
            ("bind", "strictatime", "ro"),
            AttributeChange(m.MOUNT_ATTR_STRICTATIME | m.MOUNT_ATTR_RDONLY, PLAIN | ATIME),
        ),
    ],
)
def test_what_changes_on_a_bind_mount(words: tuple[str, ...], change: AttributeChange | None) -> None:
    assert bind_change(parse_options(words)) == change


def test_the_gentle_change_takes_away_only_what_was_named_or_is_never_locked() -> None:
    free = m.MOUNT_ATTR_NOSYMFOLLOW
    assert gentle_bind_change(parse_options(("bind", "ro"))) == AttributeChange(m.MOUNT_ATTR_RDONLY, free)
    assert gentle_bind_change(parse_options(("bind", "rw"))) == AttributeChange(0, m.MOUNT_ATTR_RDONLY | free)
    assert gentle_bind_change(parse_options(("bind", "noatime"))) == AttributeChange(
        m.MOUNT_ATTR_NOATIME, ATIME | free
    )


def test_access_times_that_were_named_to_be_taken_away_are_noted() -> None:
    noted = unwanted_atime(parse_options(("bind", "atime", "diratime", "norelatime", "relatime", "rw")))
    assert noted == os.ST_NOATIME | os.ST_NODIRATIME


@pytest.mark.parametrize(
    ("words", "mapped", "recursively"),
    [
        (("bind",), False, False),
        (("bind", "idmap"), True, False),
        (("ridmap",), True, True),
        (("idmap", "ridmap"), True, True),
        (("ridmap", "idmap"), True, False),
    ],
)
def test_the_last_word_says_how_deep_ids_are_mapped(
    words: tuple[str, ...], mapped: bool, recursively: bool
) -> None:
    options = parse_options(words)
    assert (options.id_mapped, options.id_mapped_recursively) == (mapped, recursively)
    assert options.data == ()


def test_recursive_words_are_kept_apart() -> None:
    options = parse_options(("rbind", "rro", "rexec", "rnoatime"))
    assert options.recursive == AttributeChange(
        m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR_NOEXEC | m.MOUNT_ATTR__ATIME
    )
    assert bind_change(options) is None


def test_every_propagation_word_is_kept_in_order() -> None:
    options = parse_options(("rslave", "rbind", "shared"))
    assert options.propagation == ((m.MS_SLAVE, True), (m.MS_SHARED, False))
