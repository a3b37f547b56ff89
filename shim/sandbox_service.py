"""containerd's Sandbox API: find the pod, do, answer. There is one a shim, and its id comes with every call.

What is done is in `sandbox`; codes for failures are `errors`'.
"""

from __future__ import annotations

import os

from runtime import state
from runtime.spec.json import dump
from shim.api import sandbox as api
from shim.api.types import SPEC_URL, Any, Platform, timestamp
from shim.errors import already_exists, not_found
from shim.open_calls import Method
from shim.pod_info import info_of, spec_of
from shim.pod_plan import plan_pod
from shim.sandbox import READY, Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.open_calls import Handler
    from shim.pod import Pod
    from shim.tasks import Steps
    from shim.ttrpc.connection import Call

# Machines as the kernel calls them, and as Go and images do: architecture and variant.
_PLATFORMS = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
# runtime.v1.PodSandboxState
_READY, _NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"


class SandboxService:
    """One per shim; every method takes its request and the call that brought it."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def methods(self) -> dict[str, Method]:
        """All of them, for the server."""
        handlers: dict[str, Handler] = {
            "CreateSandbox": self.create,
            "StartSandbox": self.start,
            "Platform": self.platform,
            "StopSandbox": self.stop,
            "WaitSandbox": self.wait,
            "SandboxStatus": self.status,
            "PingSandbox": self.ping,
            "ShutdownSandbox": self.shutdown,
            "SandboxMetrics": self.metrics,
        }
        return {
            name: Method(api.METHODS[name][0], handler, abandon=name == "WaitSandbox")
            for name, handler in handlers.items()
        }

    def create(self, request: api.CreateSandboxRequest, _call: Call) -> api.CreateSandboxResponse:
        """Take note of a pod that is to be, or refuse it."""
        state.check_id(request.sandbox_id)
        if self._pod.sandbox is not None:
            raise already_exists(f"sandbox {self._pod.sandbox.id}")
        self._pod.sandbox = Sandbox(self._pod, plan_pod(request))
        return api.CreateSandboxResponse()

    def start(self, request: api.StartSandboxRequest, _call: Call) -> Steps[api.StartSandboxResponse]:
        """Make the pod."""
        sandbox = self._find(request.sandbox_id)
        yield from sandbox.start()
        spec = Any(SPEC_URL, dump(spec_of(sandbox.plan)))
        return api.StartSandboxResponse(sandbox.pid, timestamp(sandbox.created_at_ns), spec)

    def platform(self, request: api.PlatformRequest, _call: Call) -> api.PlatformResponse:
        """What images the pod's containers can be made of."""
        self._find(request.sandbox_id)
        machine = os.uname().machine
        architecture, variant = _PLATFORMS.get(machine, (machine, ""))
        return api.PlatformResponse(Platform("linux", architecture, variant))

    def stop(self, request: api.StopSandboxRequest, _call: Call) -> Steps[api.StopSandboxResponse]:
        """End what runs in the pod, and give back what the pod has."""
        yield from self._find(request.sandbox_id).stop(request.timeout_secs)
        return api.StopSandboxResponse()

    def wait(self, request: api.WaitSandboxRequest, _call: Call) -> Steps[api.WaitSandboxResponse]:
        """Answer when the pod has ended."""
        sandbox = self._find(request.sandbox_id)
        yield sandbox.exited
        return api.WaitSandboxResponse(sandbox.exit_status, timestamp(sandbox.exited_at_ns))

    def status(self, request: api.SandboxStatusRequest, _call: Call) -> api.SandboxStatusResponse:
        """What is known of the pod; `info` is for `crictl inspectp`."""
        sandbox = self._find(request.sandbox_id)
        return api.SandboxStatusResponse(
            sandbox_id=sandbox.id,
            pid=sandbox.pid,
            state=_READY if sandbox.status == READY else _NOT_READY,
            info=info_of(sandbox, self._pod.handler.options) if request.verbose else {},
            created_at=timestamp(sandbox.created_at_ns) if sandbox.created_at_ns else None,
            exited_at=timestamp(sandbox.exited_at_ns) if sandbox.exited_at_ns else None,
        )

    def ping(self, request: api.PingRequest, _call: Call) -> api.PingResponse:
        """We are here."""
        self._find(request.sandbox_id)
        return api.PingResponse()

    def shutdown(self, request: api.ShutdownSandboxRequest, call: Call) -> Steps[api.ShutdownSandboxResponse]:
        """End the pod, whatever state it is in, and then the shim; also one whose create was refused."""
        if self._pod.sandbox is not None:
            yield from self._find(request.sandbox_id).dissolve(call.patience_s())
        if not len(self._pod):
            self._pod.shutdown()
        return api.ShutdownSandboxResponse()

    def metrics(self, request: api.SandboxMetricsRequest, _call: Call) -> api.SandboxMetricsResponse:
        """What the pod uses."""
        return api.SandboxMetricsResponse(self._find(request.sandbox_id).metrics())

    def _find(self, sandbox_id: str) -> Sandbox:
        sandbox = self._pod.sandbox
        if sandbox is None or sandbox.id != sandbox_id:
            raise not_found(f"sandbox {sandbox_id}")
        return sandbox
