"""Mounts of others, on paths that nobody would choose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from runtime.linux import constants as c
from tests.harness.mountinfo import mount_points, mounts_of
from tests.unit.runtime.forked import enter_user_namespace, in_child, needs_user_namespaces

pytestmark = needs_user_namespaces


def test_a_line_ends_with_a_line_feed_alone_and_may_hold_any_byte(tmp_path: Path) -> None:
    places = [os.fsencode(tmp_path) + name for name in (b"/a\rb", b"/\xff", b"/c d", b"/\xc2\x85")]

    def work() -> list[bool]:
        enter_user_namespace(c.CLONE_NEWNS)
        for place in places:
            os.mkdir(place)
            subprocess.run(["mount", "-t", "tmpfs", "theirs", place], check=True)
        found = [os.fsencode(point) for point in mount_points()]
        return [all(place in found for place in places), len(mounts_of(tmp_path)) == len(places)]

    assert in_child(work) == [True, True]
