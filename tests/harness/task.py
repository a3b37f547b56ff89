"""A shim's own door: the Task service as functions, over Manor's ttrpc client, to any shim.

containerd's shim of 2.x speaks version 3 only, Manor both; the version comes from what the shim told containerd.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any as Json
from typing import Self, TypeVar

from shim.api import task
from shim.api.codec import decode, encode
from shim.api.message import Message
from shim.api.options import RuntimeOptions
from shim.api.types import Any, Empty, Mount, pack
from shim.ttrpc.client import Client

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"

M = TypeVar("M", bound=Message)


class TaskClient:
    """A connection to one shim. Failures are RpcError, with the shim's code and text."""

    def __init__(self, address: str, version: int) -> None:
        self.service = task.SERVICE_V3 if version >= 3 else task.SERVICE_V2
        self._client = Client(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _ask(self, method: str, message: Message, answer: type[M], timeout_s: float = 30) -> M:
        return self._client.request(self.service, method, message, answer, timeout_s)

    def create(
        self,
        container: str,
        bundle: Path,
        rootfs: list[Mount],
        stdout: str = "",
        stderr: str = "",
        options: str = "",
    ) -> int:
        """Create a container from a bundle, standard descriptors without a place on /dev/null; the pid of its init.

        `options` are those of a handler, as text.
        """
        packed = pack(RuntimeOptions(config_body=options.encode())) if options else None
        request = task.CreateTaskRequest(
            id=container, bundle=str(bundle), rootfs=rootfs, stdout=stdout, stderr=stderr, options=packed
        )
        return self._ask("Create", request, task.CreateTaskResponse).pid

    def start(self, container: str, exec_id: str = "") -> int:
        """Start a container, or an exec that was added to it; returns its pid."""
        return self._ask("Start", task.StartRequest(id=container, exec_id=exec_id), task.StartResponse).pid

    def add_exec(self, container: str, exec_id: str, process: Json) -> None:
        """Tell of a process to run in a container: `process` is that part of an OCI configuration."""
        spec = Any(type_url=PROCESS_TYPE, value=json.dumps(process).encode())
        self._ask("Exec", task.ExecProcessRequest(id=container, exec_id=exec_id, spec=spec), Empty)

    def begin_wait(self, container: str, exec_id: str = "") -> int:
        """Ask for the end of a process without waiting for the answer; `finish_wait` takes what this returns."""
        request = task.WaitRequest(id=container, exec_id=exec_id)
        return self._client.begin(self.service, "Wait", encode(request))

    def finish_wait(self, call: int, timeout_s: float = 30) -> int:
        """Wait for the answer to `begin_wait` and return the exit status."""
        return decode(task.WaitResponse, self._client.finish(call, timeout_s)).exit_status

    def wait(self, container: str, exec_id: str = "") -> int:
        """Wait for the end of a process and return its exit status."""
        return self.finish_wait(self.begin_wait(container, exec_id))

    def kill(self, container: str, signal: int, exec_id: str = "") -> None:
        """Send a signal."""
        self._ask("Kill", task.KillRequest(id=container, exec_id=exec_id, signal=signal), Empty)

    def delete(self, container: str, exec_id: str = "") -> None:
        """Forget an ended process, and remove what a container had."""
        self._ask("Delete", task.DeleteRequest(id=container, exec_id=exec_id), task.DeleteResponse)

    def state(self, container: str, exec_id: str = "") -> task.StateResponse:
        """What the shim says of a process."""
        return self._ask("State", task.StateRequest(id=container, exec_id=exec_id), task.StateResponse)

    def connect(self, container: str) -> task.ConnectResponse:
        """The pids of the shim and of a container's init."""
        return self._ask("Connect", task.ConnectRequest(id=container), task.ConnectResponse)

    def shutdown(self, container: str) -> None:
        """Ask a shim without containers to end."""
        self._ask("Shutdown", task.ShutdownRequest(id=container, now=True), Empty)
