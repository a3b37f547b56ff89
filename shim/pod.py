"""What the containers of one shim have in common: loop, reaper, events, machine, and the table of containers."""

from __future__ import annotations

from shim.errors import already_exists, not_found
from shim.exchange import Exchange
from shim.journal import Journal
from shim.options import Handler
from shim.tasks import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.container import Host
    from runtime.trace import Marks, Timeline
    from shim.container import Container
    from shim.events import Publisher
    from shim.exits import Reaper
    from shim.journal import Exit
    from shim.log import Log
    from shim.loop import Loop
    from shim.sandbox import Sandbox

    # name, traceparent of the caller ("" for none), marks, attributes
    EmitSpan = Callable[[str, str, Marks, dict[str, str]], None]


class Pod:
    """One per shim. `emit_span` takes finished spans; `shutdown` is asked for when no container is left.

    `handler` is what the options of the start say, for the containers whose own do not. Without a `journal` exits
    are put on no record.
    """

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        events: Publisher,
        host: Host,
        log: Log,
        emit_span: EmitSpan,
        shutdown: Callable[[], None],
        journal: Journal | None = None,
    ) -> None:
        self.loop = loop
        self.reaper = reaper
        self.events = events
        self.host = host
        self.log = log
        self.emit_span = emit_span
        self.shutdown = shutdown
        self.handler = Handler()
        self.exchange = Exchange()
        self.journal = journal or Journal("", log)
        self.journal.undeleted = self._undeleted_exits
        self.namespace = ""  # containerd's
        self.keep: tuple[int, ...] = ()  # what each process has open that makes something for the pod: `deed`
        self.sandbox: Sandbox | None = None  # where containerd leaves the pod itself to us, too
        self.creating: dict[str, Timeline] = {}
        self._containers: dict[str, Container | None] = {}  # None while one is being created
        self._emptied = Outcome()

    def reserve(self, container_id: str, timeline: Timeline) -> None:
        """Take the id for a container that is about to be created. AlreadyExists if it is taken."""
        if container_id in self._containers:
            raise already_exists(f"container {container_id}")
        self._containers[container_id] = None
        self.creating[container_id] = timeline

    def add(self, container: Container) -> None:
        """The container of a reserved id has been created."""
        self._containers[container.id] = container
        self.creating.pop(container.id, None)

    def remove(self, container_id: str) -> None:
        """Forget a container, or a reservation."""
        self._containers.pop(container_id, None)
        self.creating.pop(container_id, None)
        if not self._containers and not self._emptied.done:
            self._emptied.set()

    def emptied(self) -> Outcome:
        """Set once there is no container; what was true then may not be so any more for who is told."""
        if self._emptied.done:
            self._emptied = Outcome()
        if not self._containers:
            self._emptied.set()
        return self._emptied

    def find(self, container_id: str) -> Container:
        """The container of that id. NotFound without one."""
        container = self._containers.get(container_id)
        if container is None:
            raise not_found(f"container {container_id}")
        return container

    def get(self, container_id: str) -> Container | None:
        """The container of that id, or None."""
        return self._containers.get(container_id)

    def __len__(self) -> int:
        return len(self._containers)

    def containers(self) -> Iterable[Container]:
        """All that have been created."""
        return [container for container in self._containers.values() if container is not None]

    def _undeleted_exits(self) -> Iterable[Exit]:
        """Of the processes that have ended and that containerd has not deleted."""
        for container in self.containers():
            for process in (container.init, *container.execs.values()):
                if process.exit is not None:
                    yield process.exit
