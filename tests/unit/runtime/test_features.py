"""The features document says what the code does."""

from __future__ import annotations

from runtime.features import document
from runtime.rootfs.options import parse_options


def test_every_mount_option_it_lists_is_understood() -> None:
    for word in document()["mountOptions"]:
        assert parse_options((word,)).data == (), f"{word} would be passed to the file system"
    assert parse_options(("frobnicate",)).data == ("frobnicate",)
