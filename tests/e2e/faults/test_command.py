"""`--fail-at` and `--delay-at` of the command line: what fails is told, what waits can be killed, nothing stays."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.security.conftest import COMMAND, QUIET, oci

if TYPE_CHECKING:
    from tests.e2e.security.conftest import Oci

__all__ = ["oci"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("main.make-cgroup:ENOSPC", "main: make cgroup: No space left on device"),
        ("main.save-state", "main: save state: Input/output error"),
        ("init.pivot-into:EPERM", "2:INIT: pivot into: Operation not permitted"),
        ("init.look-up:2", "2:INIT: look up: No such file or directory"),
    ],
)
def test_a_create_fails_where_it_is_told_to(oci: Oci, place: str, said: str) -> None:
    bundle = oci.bundle()
    bundle.write()
    answer = oci("--fail-at", place, "create", "--bundle", bundle.path, bundle.path.name)
    assert answer.returncode == 1
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (oci.root / bundle.path.name).exists()


def test_an_exec_and_a_start_fail_where_they_are_told_to(oci: Oci) -> None:
    bundle = oci.bundle()
    name = oci.started(bundle)
    answer = oci("--fail-at", "inter.join-cgroup:EBUSY", "exec", name, "true")
    assert (answer.returncode, "1:INTER: join cgroup: Device or resource busy" in answer.stderr) == (
        255,
        True,
    )
    assert oci("exec", name, "true").returncode == 0
    created = oci.bundle()
    created.write()
    command = [
        str(COMMAND),
        "--root",
        str(oci.root),
        "create",
        "--bundle",
        str(created.path),
        created.path.name,
    ]
    subprocess.run(command, check=True, timeout=60, **QUIET)
    answer = oci("--fail-at", "main.ask-to-start", "start", created.path.name)
    assert answer.returncode == 1
    assert "main: ask to start: Input/output error" in answer.stderr


def test_a_step_that_is_none_is_answered_with_those_there_are(oci: Oci) -> None:
    answer = oci("--fail-at", "init.dance", "list")
    assert answer.returncode == 1
    assert "stage init has no step 'dance'; it has " in answer.stderr
    assert " pivot-into " in answer.stderr


def test_nobody_but_root_makes_anything_fail(oci: Oci) -> None:
    # The interpreter may lie where nobody else may look.
    may_look = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *may_look, "--")
    answer = oci("--fail-at", "main.plan", "list", before=as_nobody)
    assert answer.returncode != 0
    assert "root only" in answer.stderr


def test_a_command_that_was_killed_in_a_delay_can_be_cleaned_up_after(oci: Oci) -> None:
    bundle = oci.bundle()
    bundle.write()
    command = [str(COMMAND), "--root", str(oci.root), "--delay-at", "init.pivot-into:2", "create"]
    began = time.monotonic()
    with subprocess.Popen([*command, "--bundle", str(bundle.path), bundle.path.name], **QUIET) as running:
        while oci("state", bundle.path.name).returncode:
            assert time.monotonic() < began + 60
        time.sleep(0.2)
        assert running.poll() is None
        running.kill()
        running.wait()
    assert oci("delete", "--force", bundle.path.name).returncode == 0
    assert oci("state", bundle.path.name).returncode == 1
    assert os.listdir(oci.root) in ([], ["@seccomp"])
