"""The demo: registry, images, network and containerd of its own; then one pod, step by step, by crictl.

Nothing of the machine's is touched, and the last thing it does is to look whether anything was left behind.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from demo.screen import Screen
from manor import trace
from tests.harness import handlers, leaks, tools
from tests.harness.containerd import VERSIONS, Containerd
from tests.harness.crictl import Crictl
from tests.harness.handlers import AFFINITY_ANNOTATION
from tests.harness.registry import BUSYBOX, PAUSE, Registry

PAGE = "Hello from a pod that Manor runs."
WEB = f"echo '{PAGE}' > /tmp/index.html; echo serving on port 80; exec httpd -f -h /tmp"
VISITOR = "while :; do wget -q -O - http://localhost/; sleep 0.2; done"


class Demo:
    """One pod's life, told on a screen."""

    def __init__(self, screen: Screen, node: Containerd, handler: str) -> None:
        self.screen = screen
        self.node = node
        self.handler = handler
        self.crictl = Crictl(node)

    def do(self, name: str, *words: str, show: bool = True) -> str:
        """Run one crictl command as a step of its own, show it and what it answered."""
        self.screen.command(["crictl", *words])
        with self.screen.step(name):
            result = self.crictl.run(*words)
        if show:
            self.screen.output(result.stdout + result.stderr)
        return result.stdout.strip()

    def run(self) -> None:
        """Everything, from the images to the empty machine."""
        self.screen.heading("Images, from the local registry")
        self.do("pull the pause image", "pull", PAUSE)
        self.do("pull busybox", "pull", BUSYBOX)
        self._warm_up()
        before = leaks.take(self.node)
        pod, web, visitor = self._start()
        self._look_around(web, visitor)
        self._waterfall(web)
        self._end(pod, web, visitor)
        self.screen.heading("What is left")
        leaks.assert_nothing_more(self.node, before)
        self.screen.note(
            "no process, mount, cgroup, namespace, link, address, socket or file more than before the pod"
        )

    def _warm_up(self) -> None:
        """Make the bridge and the first warden: what a node does once, not what a pod costs."""
        self.screen.heading("The node's first pod")
        self.screen.note("The first pod brings up what all later ones share: the bridge, and Manor's warden.")
        with self.screen.step("first pod of the node, run and removed"):
            pod = self.crictl.run_pod(self.handler)
            self.crictl.stop_pod(pod)
            self.crictl.remove_pod(pod)

    def _start(self) -> tuple[str, str, str]:
        self.screen.heading(f"A pod whose runtime handler is {self.handler!r}")
        path = self.crictl.pod_file({AFFINITY_ANNOTATION: "temporary"})
        pod = self.do("run the pod", "runp", "--runtime", self.handler, str(path))
        self.crictl.remember(pod, path)

        self.screen.heading("Two containers in it, which share its network")
        started = []
        for name, script in (("web", WEB), ("visitor", VISITOR)):
            configuration = self.crictl.container_file(pod, ["sh", "-c", script], name)
            container = self.do(f"create {name}", "create", pod, str(configuration), str(path))
            self.do(f"start {name}", "start", container)
            started.append(container)
        self.do("ps", "ps")
        return pod, started[0], started[1]

    def _look_around(self, web: str, visitor: str) -> None:
        self.screen.heading("An exec in one of them")
        self.do("exec", "exec", web, "ps")
        self.do("exec, as a probe does it", "exec", "-s", web, "wget", "-q", "-O", "-", "http://localhost/")

        self.screen.heading("An exec with a terminal")
        words = ["exec", "-it", web, "sh", "-c", "sleep 0.1; tty; stty size; whoami"]
        self.screen.command(["crictl", *words])
        with self.screen.step("exec with a terminal"):
            result = self.crictl.on_terminal(*words)
        self.screen.output(result.stdout)

        self.screen.heading("Logs and stats")
        self._wait_for_a_visit(visitor)
        self.do("logs", "logs", "--tail", "3", visitor)
        self.do("stats", "stats")

    def _wait_for_a_visit(self, visitor: str) -> None:
        """Not before the visitor has fetched a page: the web server may need a moment."""
        deadline = time.monotonic() + 10
        while PAGE not in self.crictl.run("logs", visitor).stdout:
            if time.monotonic() > deadline:
                raise TimeoutError("the visitor did not get a page")
            time.sleep(0.05)

    def _waterfall(self, container: str) -> None:
        """Show where the time of creating and starting a container went, as its stages told it."""
        if self.handler != "manor":
            return
        self.screen.heading(
            "Where the time of creating and starting web went (ms since the request came to the shim)"
        )
        spans = self.node.run_dir / "spans.jsonl"
        deadline = time.monotonic() + 3
        found: list[list[trace.Span]] = []
        while not found and time.monotonic() < deadline:
            time.sleep(0.1)  # the scribe writes when it has time to
            if spans.exists():
                with open(spans, encoding="utf-8") as lines:
                    found = trace.matching(trace.traces(trace.parse(lines)), container)
        if not found:
            raise TimeoutError(f"no trace of {container} in {spans}")
        self.screen.output("\n".join(trace.waterfall(found[0])))
        self.screen.note(
            "every start and exec leaves such a trace; those of a node of yours are drawn by: manor trace"
        )

    def _end(self, pod: str, web: str, visitor: str) -> None:
        self.screen.heading("Stop and remove")
        self.do("stop both containers", "stop", "--timeout", "0", web, visitor)
        self.do("remove both containers", "rm", web, visitor)
        self.do("stop the pod", "stopp", pod)
        self.do("remove the pod", "rmp", pod)


def arguments() -> argparse.Namespace:
    """What can be asked on the command line."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--handler", default="manor", help="the runtime to run the pod on (manor, runc)")
    parser.add_argument(
        "--containerd", default="2.3", choices=VERSIONS, help="the containerd to run it under"
    )
    return parser.parse_args()


def main() -> int:
    """Run the demo. 0 if every step succeeded and nothing was left behind."""
    asked = arguments()
    if os.geteuid() != 0:
        print("the demo needs root: it makes namespaces, mounts and cgroups", file=sys.stderr)
        return 1
    if asked.handler not in {handler.name for handler in handlers.available()}:
        print(f"no handler {asked.handler!r} here: has `make venv` been run?", file=sys.stderr)
        return 1
    screen = Screen()
    start = time.monotonic()
    try:
        screen.heading("A registry and a containerd of our own")
        with screen.step("start the registry with two images"):
            registry = Registry()
        try:
            with screen.step(f"start containerd {asked.containerd}"):
                node = Containerd(asked.containerd, registry)
            screen.note(f"everything is below {node.instance.directory} and goes with it")
            try:
                Demo(screen, node, asked.handler).run()
            finally:
                node.close()
        finally:
            registry.close()
    except tools.ToolError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    screen.heading(
        "How long each step took (crictl itself included: 15 ms to start, a second to sample for stats)"
    )
    screen.table()
    screen.note(f"the whole demo, from the empty machine back to it: {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
