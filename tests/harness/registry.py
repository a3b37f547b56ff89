"""A registry on the loopback that serves the harness's images, and nothing else.

Debian's docker-registry with its own data directory, on a port the kernel chose. Nodes know it under a fixed
name, HOST: their `hosts.toml` says where it really is.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from pathlib import Path

from tests.harness import images, tools
from tests.harness.instances import Instance, spawn, stop

HOST = "registry.manor.test"
BUSYBOX = f"{HOST}/busybox:1"
PAUSE = f"{HOST}/pause:1"

CONFIGURATION = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Registry:
    """A running registry; `close` ends it and removes its data."""

    def __init__(self) -> None:
        self.instance = Instance.create()
        try:
            self.port = _free_port()
            self._process = self._start()
            self._wait()
            for image in (images.pause(), images.busybox()):
                self.push(image)
        except BaseException:
            self.instance.destroy()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        directory = self.instance.directory
        configuration = directory / "registry.yml"
        configuration.write_text(
            CONFIGURATION.format(data=directory / "registry", port=self.port), encoding="utf-8"
        )
        program = tools.debian_program("docker-registry")
        log = directory / "registry.log"
        # The secret only signs upload sessions of this one process.
        environment = {**self.instance.environment(), "REGISTRY_HTTP_SECRET": self.instance.id}
        return spawn([str(program), "serve", str(configuration)], environment, log)

    def _wait(self) -> None:
        for _ in range(200):
            try:
                self._request("GET", "/v2/")
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"the registry does not answer: see {self.instance.directory}/registry.log")

    def _request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/octet-stream"
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(
            method, path, body, {"Content-Type": content_type, "Content-Length": str(len(body))}
        )
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    def push(self, image: images.Image) -> None:
        """Store an image: its blobs, then its manifest. RuntimeError if the registry refuses one."""
        for name, data in image.blobs.items():
            started = self._request("POST", f"/v2/{image.name}/blobs/uploads/")
            location = (started.getheader("Location") or "").split("/v2/", 1)[-1]
            separator = "&" if "?" in location else "?"
            done = self._request("PUT", f"/v2/{location}{separator}digest={name}", data)
            if done.status != 201:
                raise RuntimeError(f"push of {image.name}, blob {name}: status {done.status}")
        manifest = f"/v2/{image.name}/manifests/{image.tag}"
        done = self._request("PUT", manifest, image.manifest, images.MANIFEST_TYPE)
        if done.status != 201:
            raise RuntimeError(f"push of {image.name}, manifest: status {done.status}")

    def write_hosts(self, directory: Path) -> None:
        """Write the `hosts.toml` through which a containerd finds this registry under its fixed name."""
        target = directory / HOST
        target.mkdir(parents=True)
        text = f'server = "http://127.0.0.1:{self.port}"\n\n[host."http://127.0.0.1:{self.port}"]\n'
        (target / "hosts.toml").write_text(f'{text}  capabilities = ["pull", "resolve"]\n', encoding="utf-8")

    def close(self) -> None:
        """End the registry and remove everything of it."""
        stop(self._process)
        self.instance.destroy()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
