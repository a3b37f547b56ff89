"""spec: the config.json to begin with can be run, by root and in a user namespace, and hides what it should."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import PARENT, Oci

HIDDEN = (
    *(
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/scsi",
    ),
    *("/proc/asound", "/proc/acpi", "/sys/firmware"),
)
HIDDEN_BY_US = ("/proc/interrupts", "/sys/devices/virtual/powercap")


def spec_of(oci: Oci, *words: str) -> dict[str, Any]:
    directory = oci.directory / "fresh"
    directory.mkdir()
    assert oci.ok("spec", *words, cwd=directory) == ""
    (name,) = [path.name for path in directory.iterdir()]
    assert name == "config.json"
    config: dict[str, Any] = json.loads((directory / name).read_bytes())
    return config


def test_it_is_written_into_the_working_directory(oci: Oci) -> None:
    config = spec_of(oci)
    assert config["ociVersion"] == "1.3.0"
    assert config["process"]["args"] == ["sh"]
    assert config["process"]["noNewPrivileges"] is True
    assert config["root"] == {"path": "rootfs", "readonly": True}
    assert config["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert "inheritable" not in config["process"]["capabilities"]
    assert "ambient" not in config["process"]["capabilities"]
    text = (oci.directory / "fresh" / "config.json").read_text()
    assert text.startswith('{\n\t"ociVersion": "1.3.0",\n\t"process": {\n\t\t"terminal": true,\n')


def test_or_into_the_bundle(oci: Oci) -> None:
    bundle = oci.directory / "b"
    bundle.mkdir()
    oci.ok("spec", "--bundle", "b")
    assert json.loads((bundle / "config.json").read_bytes())["root"]["path"] == "rootfs"
    assert "no such file or directory" in oci("spec", "-b", "nowhere").error


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
def test_nothing_is_written_over(oci: Oci, kind: str) -> None:
    target, config = oci.directory / "target", oci.directory / "config.json"
    if kind != "broken link":
        target.write_text("kept")
    if kind == "file":
        target.rename(config)
        target = config
    else:
        config.symlink_to(target)
    if kind == "broken link" and not oci.is_manor:
        pytest.skip("runc follows it")
    done = oci("spec")
    assert (done.code, done.error) == (1, "File config.json exists. Remove it first")
    assert not target.exists() if kind == "broken link" else target.read_text() == "kept"


def test_the_mode_follows_the_umask(oci: Oci) -> None:
    oci.run(["sh", "-c", f"umask 027; exec {oci.program} spec"])
    assert (oci.directory / "config.json").stat().st_mode & 0o7777 == 0o640


def made_runnable(oci: Oci, config: dict[str, Any], script: str) -> Path:
    """A bundle of busybox's with `config`, its program changed and its terminal gone."""
    bundle = oci.bundle()
    config["process"] |= {"terminal": False, "args": ["sh", "-c", script]}
    config["linux"]["cgroupsPath"] = f"/{PARENT}/{os.getpid()}-{bundle.path.name}"
    (bundle.path / "config.json").write_text(json.dumps(config))
    return bundle.path


def test_it_can_be_run_as_it_is(oci: Oci) -> None:
    bundle = made_runnable(
        oci, spec_of(oci), "hostname; id -u; cat /proc/self/status; touch /x || echo read-only"
    )
    done = oci("run", "--bundle", bundle, bundle.name)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "0"
    assert lines[-1] == "read-only"
    assert "NoNewPrivs:\t1" in lines
    assert "CapInh:\t0000000000000000" in lines
    assert "CapAmb:\t0000000000000000" in lines


def test_it_hides_the_host(oci: Oci) -> None:
    hidden = HIDDEN + (HIDDEN_BY_US if oci.is_manor else ())
    config = spec_of(oci)
    assert set(hidden) <= set(config["linux"]["maskedPaths"])
    # A masked file is empty, a masked directory too.
    script = f"for p in {' '.join(hidden)}; do if [ -d $p ]; then ls -A $p; else cat $p 2>/dev/null; fi; done; true"
    bundle = made_runnable(oci, config, script)
    done = oci("run", "--bundle", bundle, bundle.name)
    assert (done.code, done.stdout) == (0, ""), done.stderr


def test_the_rootless_one_has_a_user_namespace_and_asks_for_nothing_else(oci: Oci) -> None:
    config = spec_of(oci, "--rootless")
    linux = config["linux"]
    kinds = [each["type"] for each in linux["namespaces"]]
    assert "user" in kinds
    assert "network" not in kinds
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    assert "resources" not in linux
    (sys,) = [each for each in config["mounts"] if each["destination"] == "/sys"]
    assert (sys["type"], sys["source"], sys["options"][0]) == ("none", "/sys", "rbind")
    assert not any(
        word.startswith(("uid=", "gid=")) for each in config["mounts"] for word in each.get("options", ())
    )
    assert kinds.count("cgroup") == os.path.exists("/sys/fs/cgroup/cgroup.controllers")
