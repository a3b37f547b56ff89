"""Launchers in other namespaces and cgroups: a warden of their own, or a shim that goes where the launcher is."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.instances import hierarchies
from tests.harness.waiting import remove_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.shim.installed import Manor

V1_MEMBERS = "tasks"


@pytest.mark.parametrize("kind", ["uts", "ipc", "net", "mount", "cgroup", "user", "pid", "time"])
def test_a_launcher_in_another_namespace_has_another_warden(manor: Manor, kind: str) -> None:
    first = manor.say()
    options = {"pid": ["--pid", "--fork"], "time": ["--time"], "user": ["--user", "--map-root-user"]}
    done = manor.run("say", before=["unshare", *options.get(kind, [f"--{kind}"])])
    if done.returncode != 0 and b"unshare" in done.stderr:
        pytest.skip(done.stderr.decode().strip())
    other = eval(done.stdout)
    assert other["parent"] != first["parent"]
    if kind not in (
        "pid",
        "time",
    ):  # whose pid namespace, and whose children's, is not that of the command itself
        assert os.readlink("/proc/self/ns/" + {"mount": "mnt"}.get(kind, kind)) not in str(other)
    assert manor.say()["parent"] == first["parent"]


def test_a_launcher_in_a_chroot_has_another_warden(manor: Manor) -> None:
    # "/" again, but by another way: what counts is what the root directory is, and here it is the same one.
    assert manor.say(before=["chroot", "/"])["parent"] == manor.say()["parent"]


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    """A cgroup in each hierarchy that is mounted, removed when the test is over."""
    name = f"manor-test-{secrets.token_hex(4)}"
    made = []
    for top in hierarchies():
        path = top / name
        path.mkdir()
        made.append(path)
    for path in made:
        if (path / "cpuset.cpus").exists() and not (path / "cpuset.cpus").read_text().strip():
            for file in ("cpuset.cpus", "cpuset.mems"):
                (path / file).write_text((path.parent / file).read_text())
    yield made
    for path in made:
        remove_cgroup(path)  # a shim that has told about itself has yet to end


def test_a_shim_is_in_the_cgroups_of_its_launcher(manor: Manor, cgroups: list[Path]) -> None:
    at_home = manor.say()
    join = "; ".join(f"echo $$ > {path}/cgroup.procs" for path in cgroups)
    facts = manor.say(before=["sh", "-c", f'{join}; exec "$@"', "sh"])
    assert facts["parent"] == at_home["parent"]  # the same warden
    name = cgroups[0].name
    assert facts["cgroup"].count(name) == len({path.stat().st_dev for path in cgroups})
    assert name not in at_home["cgroup"]
