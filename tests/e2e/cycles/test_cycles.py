"""Pods over and over: nothing may add up. `MANOR_CYCLES` sets how many; CI runs a slice, `make soak` 300."""

from __future__ import annotations

import os

from tests.harness.crictl import Crictl

CYCLES = int(os.environ.get("MANOR_CYCLES", "10"))


def test_pod_cycles_leave_nothing(crictl: Crictl, handler: str) -> None:
    """Run, create, start, exec, stop, remove; the node's leak check compares before and after."""
    for _ in range(CYCLES):
        pod = crictl.run_pod(handler)
        container = crictl.run_container(pod, ["sleep", "1000"])
        assert crictl.execute(container, "sh", "-c", "exit 3", sync=True, check=False).exit_code == 3
        crictl.run("stop", "--timeout", "0", container)
        crictl.run("rm", container)
        crictl.stop_pod(pod)
        crictl.remove_pod(pod)
