"""Hooks, as the command line runs them: which, when, where, and what they are told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories

_HOST = ("prestart", "createRuntime", "poststart", "poststop")
_INSIDE = ("createContainer", "startContainer")
_ORDER = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]


@pytest.fixture
def hooked(oci: Oci) -> Any:
    """A bundle whose hooks note their name and what they were told in `log`, which is bound into the container."""

    def make(*program: str, fail: str = "") -> Path:
        log = oci.directory / "log"
        log.mkdir()
        bundle = oci.bundle(*(program or ("true",)))
        bundle.config["mounts"].append(
            {"destination": "/log", "type": "bind", "source": str(log), "options": ["bind", "rw"]}
        )
        hooks: dict[str, Any] = {}
        for name in _ORDER:
            place = "/log" if name == "startContainer" else str(log)
            script = f"cat > {place}/{name}; echo {name} >> {place}/order; pwd >> {place}/{name}.cwd"
            script += "; exit 3" if name == fail else ""
            path = "/bin/sh"
            hooks[name] = [{"path": path, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]
        bundle.config["hooks"] = hooks
        bundle.write()
        return bundle.path

    return make


def _order(oci: Oci) -> list[str]:
    file = oci.directory / "log/order"
    return file.read_text().split() if file.exists() else []


@pytest.mark.manor_only(reason="runc runs poststart hooks when the container is created")
def test_all_run_in_their_order(oci: Oci, hooked: Any) -> None:
    bundle = hooked()
    oci.ok("create", "-b", bundle, "c")
    assert _order(oci) == _ORDER[:3]
    oci.ok("start", "c")
    oci.await_status("c", "stopped")
    assert _order(oci) == _ORDER[:5]
    oci.ok("delete", "c")
    assert _order(oci) == _ORDER


@pytest.mark.parametrize("words", [["run"], ["run", "--keep"]])
def test_a_run_in_the_foreground_runs_them_all(oci: Oci, hooked: Any, words: list[str]) -> None:
    bundle = hooked("sh", "-c", "sleep 0.3")
    assert oci(*words, "-b", bundle, "c").code == 0
    wanted = _ORDER if words == ["run"] else _ORDER[:5]
    assert _order(oci) == wanted if oci.is_manor else sorted(_order(oci)) == sorted(wanted)


def test_they_are_told_the_state(oci: Oci, hooked: Any) -> None:
    bundle = hooked("sleep", "1000")
    oci.ok("run", "-d", "-b", bundle, "c")
    pid = oci.state("c")["pid"]
    oci.ok("delete", "-f", "c")
    wanted = {
        "prestart": "creating",
        "createRuntime": "creating",
        "poststart": "running",
        "poststop": "stopped",
    }
    for name in _ORDER:
        state = json.loads((oci.directory / "log" / name).read_text())
        assert state["id"] == "c"
        assert state["bundle"] == str(bundle)
        if oci.is_manor or name != "poststart":
            assert state["status"] == wanted.get(name, state["status"])
        if name in ("prestart", "createRuntime", "poststart"):
            assert state["pid"] == pid


@pytest.mark.parametrize("fail", _ORDER[:4])
def test_one_that_fails_before_the_start_ends_it_all(oci: Oci, hooked: Any, fail: str) -> None:
    bundle = hooked("sh", "-c", "touch /log/ran", fail=fail)
    done = oci("run", "-b", bundle, "c")
    assert done.code != 0
    assert done.stderr
    if oci.is_manor or fail != "startContainer":  # runc's init tells its own standard error
        assert fail in done.error
    time.sleep(0.1)
    assert not (oci.directory / "log/ran").exists()
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.name)


def test_a_poststop_hook_that_fails_is_only_told(oci: Oci, hooked: Any) -> None:
    bundle = hooked(fail="poststop")
    assert oci("run", "-b", bundle, "c").code == 0
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.name)


@pytest.mark.manor_only(reason="runc runs poststart hooks when the container is created")
def test_a_poststart_hook_that_fails_ends_the_container(oci: Oci, hooked: Any) -> None:
    bundle = hooked("sleep", "1000", fail="poststart")
    oci.ok("create", "-b", bundle, "c")
    pid = oci.state("c")["pid"]
    done = oci("start", "c")
    assert done.code == 1
    assert "poststart" in done.error
    assert not Path(f"/proc/{pid}/root/bin").exists()
    assert '"running"' not in oci("state", "c").stdout


@pytest.mark.parametrize("how", ["run", "run -d"])
def test_a_run_whose_poststart_hook_fails_leaves_nothing(oci: Oci, hooked: Any, how: str) -> None:
    bundle = hooked("sleep", "1000", fail="poststart")
    done = oci(*how.split(), "-b", bundle, "c")
    assert done.code == 1
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.name)


def test_a_hook_that_takes_too_long_is_ended(oci: Oci) -> None:
    bundle = oci.bundle("true")
    bundle.config["hooks"] = {
        "createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]
    }
    bundle.write()
    done = oci("run", "-b", bundle.path, "c")
    assert done.code == 1
    assert oci("state", "c").code == 1
