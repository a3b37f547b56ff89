"""`--debug`: what somebody wants to know who looks for the cause of something odd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories

_LINE = re.compile(r'^time="[^"]*" level=debug msg=(".*"|\S+)$', re.MULTILINE)


def _lines(text: str) -> list[str]:
    return [line.strip('"') for line in _LINE.findall(text)]


def _find(pattern: str, lines: list[str]) -> re.Match[str]:
    found = [match for line in lines if (match := re.fullmatch(pattern, line))]
    assert len(found) == 1, lines
    return found[0]


def test_there_are_debug_lines_with_the_option_alone(oci: Oci) -> None:
    bundle = oci.bundle("true")
    assert _lines(oci("run", "--bundle", bundle.path, "c1").stderr) == []
    assert _lines(oci("--debug", "run", "--bundle", bundle.path, "c1").stderr)


@pytest.mark.manor_only("these are our words")
def test_a_create_tells_of_its_container_and_its_steps(oci: Oci) -> None:
    bundle = oci.bundle()
    done = oci("--debug", "create", "--bundle", bundle.path, "c1")
    lines = _lines(done.stderr)
    assert lines[0] == f"create c1: root directory {oci.root}"
    pid = oci.state("c1")["pid"]
    cgroup = bundle.config["linux"]["cgroupsPath"].lstrip("/")
    _find(f"container c1 of bundle {bundle.path}: init is process {pid}, in cgroup /?{cgroup}", lines)
    _find(r"mount root file system: \d+\.\d\d ms", lines)


@pytest.mark.manor_only("these are our words")
def test_an_exec_tells_its_cgroup_and_its_cpus(oci: Oci) -> None:
    name = oci.started(change=lambda config: config["process"].update(execCPUAffinity={"initial": "0"}))
    lines = _lines(oci("--debug", "exec", name, "true").stderr)
    process = _find(rf"process (\d+) joined the container's own cgroup .*-{name}", lines)[1]
    _find(f"cpu affinity of process {process}: 0 before it joined, 0 after", lines)

    other = oci.started()
    lines = _lines(oci("--debug", "exec", other, "true").stderr)
    _find(r"cpu affinity of process \d+: unchanged before it joined, all possible CPUs after", lines)


@pytest.mark.manor_only("these are our words, and runc falls back in unified mode only")
def test_an_exec_tells_why_it_is_in_another_cgroup(oci: Oci) -> None:
    name = oci.started()
    unified = [place for place in cgroup_directories(name) if (place / "cgroup.type").exists()]
    if not unified:
        pytest.skip("no cgroup v2 here")
    elsewhere = Path(f"{unified[0]}-elsewhere")
    elsewhere.mkdir()
    (elsewhere / "cgroup.procs").write_text(str(oci.state(name)["pid"]))
    unified[0].rmdir()
    done = oci("--debug", "exec", name, "cat", "/proc/self/cgroup")
    assert done.code == 0, done.stderr
    _find(
        rf"process \d+ joined the v2 cgroup that init is in now, as \S+-{name} cannot be joined: it is gone",
        _lines(done.stderr),
    )
    oci.ok("delete", "--force", name)
    elsewhere.rmdir()
