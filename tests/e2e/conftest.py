"""End-to-end fixtures: one containerd of each version for the whole session, one leak check for each test.

A test that takes `node` runs once per containerd version, one that takes `handler` also once per runtime under
test (`tests/harness/handlers.py` says which). Before and after every test the machine is compared: what a test
leaves behind fails it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness import containerd, handlers, leaks, venv
from tests.harness.containerd import Containerd
from tests.harness.crictl import Crictl
from tests.harness.every_test import no_test_hangs, no_thread_is_left
from tests.harness.paths import VENV
from tests.harness.registry import BUSYBOX, Registry
from tests.harness.seconds import pytest_runtest_logreport, pytest_terminal_summary

__all__ = [
    "no_test_hangs",  # fixtures of every test
    "no_thread_is_left",
    "pytest_runtest_logreport",
    "pytest_terminal_summary",
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a reference runtime cannot do: tests marked `manor_only`, which say why; and what a containerd
    of another version than those in `versions` cannot, or one before that in `pods_since` with the pods that it leaves
    to their shims.
    """

    def left_out(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        versions = item.get_closest_marker("versions")
        version = containerd.like(parameters["running_node"]) if "running_node" in parameters else None
        if versions is not None and version not in (None, *versions.args):
            return True
        handler = parameters.get("handler")
        if handler in (handlers.MANOR_PODS, handlers.MANOR_STREAMS) and version == "1.6":
            return True  # it leaves no pod to a shim
        since = item.get_closest_marker("pods_since")
        if since is not None and handler in (None, handlers.MANOR_PODS, handlers.MANOR_STREAMS):
            if _number(parameters.get("running_node", "2.3")) < _number(since.args[0]):
                return True
        reference = handler is not None and not handlers.is_manor(handler)
        return reference and item.get_closest_marker("manor_only") is not None

    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@pytest.fixture(scope="session", autouse=True)
def no_signal_is_ignored() -> None:
    """A shell's `&` leaves SIGINT ignored, nohup SIGHUP: whom we start would inherit that, and runc hands it on."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def commands_are_of_the_code_we_test() -> None:
    """Where they can be written: in a virtual machine that takes a minute, and those that were brought are as new."""
    if "MANOR_COMMANDS_BROUGHT" not in os.environ:
        venv.write_commands(VENV / "bin" / "python")


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """The registry that all nodes of the session pull from."""
    served = Registry()
    yield served
    served.close()


class Node:
    """A containerd with its crictl."""

    def __init__(self, daemon: Containerd) -> None:
        self.containerd = daemon
        self.crictl = Crictl(daemon)
        self.crictl.run("pull", BUSYBOX)
        # The first pod brings up what stays: the bridge, the cgroup parent, a warden, containerd's connections.
        there = {handler.name for handler in daemon.handlers}
        for handler in filter(there.__contains__, handlers.under_test()):
            pod = self.crictl.run_pod(handler)
            self.crictl.stop_pod(pod)
            self.crictl.remove_pod(pod)


@pytest.fixture(scope="session", params=containerd.VERSIONS)
def running_node(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Node]:
    """A containerd that serves all tests of its version."""
    daemon = Containerd(request.param, registry)
    try:
        yield Node(daemon)
    finally:
        daemon.close()


@pytest.fixture
def node(running_node: Node) -> Iterator[Node]:
    """The session's node, cleaned after the test and compared with what it was before."""
    yield from _checked(running_node)


def _checked(node: Node) -> Iterator[Node]:
    before = leaks.take(node.containerd)
    yield node
    node.crictl.clean()
    leaks.assert_nothing_more(node.containerd, before)


@pytest.fixture(params=handlers.under_test())
def handler(request: pytest.FixtureRequest) -> str:
    """The name of the runtime that the pods of this test run on."""
    name: str = request.param
    return name


@pytest.fixture
def crictl(node: Node) -> Crictl:
    """crictl, bound to the node."""
    return node.crictl


@pytest.fixture
def pod(crictl: Crictl, handler: str) -> str:
    """A pod sandbox of the runtime under test; the node's clean-up ends it."""
    return crictl.run_pod(handler)


@pytest.fixture
def container(crictl: Crictl, pod: str) -> str:
    """A running container with a shell in that pod, which sleeps."""
    return crictl.run_container(pod, ["sleep", "1000"])


NodeMaker = Callable[..., Node]


@pytest.fixture
def make_node(registry: Registry) -> Iterator[NodeMaker]:
    """Makes nodes of a test's own: `make_node("2.3", kernel_command_line=…)`. They end with the test."""
    with ExitStack() as stack:

        def make(version: str, kernel_command_line: str | None = None) -> Node:
            daemon = Containerd(version, registry, kernel_command_line)
            stack.callback(daemon.close)
            return Node(daemon)

        yield make
