"""What is the machine's of a shim: how likely the kernel is to kill it for want of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.harness.crictl import Crictl


def score(pid: int) -> int:
    """The oom_score_adj of a process."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.fixture
def protected(node: Node) -> Iterator[Path]:
    """The oom_score_adj of containerd, which a test may set as a unit's OOMScoreAdjust does."""
    file = Path(f"/proc/{node.containerd.process.pid}/oom_score_adj")
    before = file.read_text()
    yield file
    file.write_text(before)


@pytest.mark.parametrize("scores", [(300, 100), (100, -999)], ids=["lower", "protected"])
def test_a_shim_goes_before_its_containerd_and_after_all_others(
    node: Node, crictl: Crictl, handler: str, protected: Path, scores: tuple[int, int]
) -> None:
    """One more than what containerd has, however high or low; a warden that is there already has no say."""
    for daemons in scores:
        try:
            protected.write_text(str(daemons))
        except PermissionError:
            pytest.skip("a score below that of PID 1 needs CAP_SYS_RESOURCE")
        pod = crictl.run_pod(handler)
        (shim,) = node.containerd.shim_pids(pod)
        assert score(shim) == daemons + 1
        container = crictl.run_container(pod, ["sleep", "1000"], linux={"resources": {"oom_score_adj": 700}})
        assert score(crictl.pid(container)) == 700
        crictl.execute(container, "true")
        assert score(shim) == daemons + 1  # a process is born with its own score, which the shim lends it
