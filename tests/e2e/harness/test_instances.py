"""An instance ends with everything in it, whatever state that is in."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.instances import Instance, hierarchies, process
from tests.harness.waiting import eventually


def test_what_is_frozen_ends_with_its_instance() -> None:
    instance = Instance.create()
    name = instance.cgroup_parent.lstrip("/")
    frozen = subprocess.Popen(["sleep", "1000"], env=instance.environment())
    try:
        (directory, file, word) = _freezer(name)
        (directory / "cgroup.procs").write_text(str(frozen.pid))
        (directory / file).write_text(word)
        instance.destroy()
        eventually(lambda: frozen.poll() is not None, limit_s=30)
    finally:
        instance.destroy()
        frozen.kill()
        frozen.wait()
    assert process(frozen.pid) is None
    assert list(instance.cgroups()) == []


def _freezer(name: str) -> tuple[Path, str, str]:
    """A new cgroup that can be frozen, and what is to be written where for that."""
    for top in hierarchies():
        directory = top / name
        directory.mkdir()
        for file, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            if (directory / file).exists():
                return directory, file, word
        directory.rmdir()
    raise AssertionError("there is no freezer")
