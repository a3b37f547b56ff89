"""A private containerd: own root, state, sockets, network and cgroup parent; nothing of the machine's is touched.

Two versions: Debian's 1.6, which knows a shim by a plain address, and 2.3, which speaks a bootstrap protocol. Others,
named in full, in `$MANOR_CONTAINERDS` (separated by commas): they are built when they are first asked for.
A node can be killed and started again, and can live in a mount namespace of its own where another
/proc/cmdline is seen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harness import cni, handlers, tools
from tests.harness.handlers import AFFINITY_ANNOTATION, Handler
from tests.harness.instances import Instance, spawn, stop
from tests.harness.paths import SHIM
from tests.harness.registry import PAUSE, Registry

_ALWAYS = ("1.6", "2.3")
_CHOSEN = os.environ.get("MANOR_CONTAINERDS", "")
VERSIONS = tuple(_CHOSEN.split(",")) if _CHOSEN else _ALWAYS


def like(version: str) -> str:
    """Which of the two versions that are always there another one is like, as far as tests need to tell."""
    return _ALWAYS[0] if version.startswith("1.") else _ALWAYS[1]


@dataclass(frozen=True)
class Binaries:
    """The programs of one containerd: its daemon, its client, and where its shims are found."""

    containerd: Path
    ctr: Path
    path: str


def binaries(version: str) -> Binaries:
    """The programs of a version. ToolError if those that are always there have not been made yet."""
    runc = tools.program(tools.RUNC_1, "runc").parent
    if version == "1.6":
        daemon = tools.debian_program("containerd")
    elif version == "2.3":
        daemon = tools.program(tools.CONTAINERD_2, "containerd")
    else:
        other = tools.other_containerd(version)
        tools.ensure_built(other)
        daemon = tools.program(other, "containerd")
    # Whatever comes first in the path wins: that version's own runc shim, and never the machine's runc.
    path = f"{daemon.parent}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
    return Binaries(daemon, daemon.parent / "ctr", f"{runc}:{path}")


def _handler_tables(prefix: str, chosen: list[Handler]) -> str:
    text = ""
    for handler in chosen:
        text += f"\n[plugins.{prefix}.containerd.runtimes.{handler.name}]\n"
        text += f'  runtime_type = "{handler.runtime_type}"\n'
        if handler.runtime_path:
            text += f'  runtime_path = "{handler.runtime_path}"\n'
        if handler.sandboxer:
            text += f'  sandboxer = "{handler.sandboxer}"\n'
        if handler.io_type:
            text += f'  io_type = "{handler.io_type}"\n'
        text += f'  pod_annotations = ["{AFFINITY_ANNOTATION}"]\n'
        if handler.options:
            text += f"  [plugins.{prefix}.containerd.runtimes.{handler.name}.options]\n"
            text += "".join(f"    {key} = {json.dumps(value)}\n" for key, value in handler.options.items())
    return text


CONFIGURATION_2 = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{hosts}"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"
  default_runtime_name = "runc"
"""

CONFIGURATION_3 = """\
version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "{sockets}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{hosts}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
  {plugin_setting}
  conf_dir = "{networks}"
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
"""
CRI_TABLE = {"1.6": '"io.containerd.grpc.v1.cri"', "2.3": '"io.containerd.cri.v1.runtime"'}


class Containerd:
    """A running containerd of our own. `close` ends it, its pods and everything they left.

    `kernel_command_line`, if given, is what the daemon and its shims read in /proc/cmdline; `environment` is
    added to theirs. `shim` is what the handlers that are Manor run, the checkout's as a rule.
    """

    def __init__(
        self,
        version: str,
        registry: Registry,
        kernel_command_line: str | None = None,
        environment: dict[str, str] | None = None,
        shim: Path = SHIM,
    ) -> None:
        self.version = version
        self.binaries = binaries(version)
        self.handlers = [one for one in handlers.available() if like(version) != "1.6" or not one.sandboxer]
        self.instance = Instance.create()
        directory = self.instance.directory
        self.root, self.state = directory / "root", directory / "state"
        self.socket = directory / "containerd.sock"
        self.run_dir = directory / "run"  # Manor's: the warden and its sockets
        self.log = directory / "containerd.log"
        self._kernel_command_line = kernel_command_line
        self._more_environment = environment or {}
        self._shim = shim
        try:
            self._configure(registry)
            self.start()
        except BaseException:
            self.instance.destroy()
            raise

    def _configure(self, registry: Registry) -> None:
        directory = self.instance.directory
        registry.write_hosts(directory / "certs.d")
        self.run_dir.mkdir(mode=0o700)
        self._programs = directory / "bin"  # containerd 1.6 finds a shim by PATH only
        self._programs.mkdir()
        (self._programs / SHIM.name).symlink_to(self._shim)
        template = CONFIGURATION_2 if like(self.version) == "1.6" else CONFIGURATION_3
        text = template.format(
            root=self.root,
            state=self.state,
            socket=self.socket,
            sockets=directory / "s",
            pause=PAUSE,
            hosts=directory / "certs.d",
            plugins=cni.PLUGINS,
            plugin_setting=_plugin_setting(self.version),
            networks=cni.write_configuration(self.instance),
            snapshotter=_snapshotter(directory),
        )
        chosen = [*self.handlers, *handlers.manor_with_options()]
        chosen = [handlers.running(each, self._shim) for each in chosen]
        text += _handler_tables(CRI_TABLE[like(self.version)], chosen)
        self._config_file = directory / "config.toml"
        self._config_file.write_text(text, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """What the daemon, and through it every shim, has in its environment."""
        path = f"{self._programs}:{self.binaries.path}"
        own = {"PATH": path, "MANOR_RUN_DIR": str(self.run_dir)}
        return {**self.instance.environment(), **own, **self._more_environment}

    def start(self) -> None:
        """Start the daemon and wait until the CRI answers."""
        command = [str(self.binaries.containerd), "--config", str(self._config_file)]
        if self._kernel_command_line is not None:
            command = self._inside_own_mount_namespace(command)
        self.process = spawn(command, self.environment(), self.log, self.instance.directory)
        self._wait_until_ready()

    def _inside_own_mount_namespace(self, command: list[str]) -> list[str]:
        """Wrap a command so that it, and all it starts, sees a /proc/cmdline of our making."""
        assert self._kernel_command_line is not None
        text = self.instance.directory / "cmdline"
        text.write_text(self._kernel_command_line + "\n", encoding="ascii")
        script = 'mount --bind "$0" /proc/cmdline && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(text), *command]

    def _wait_until_ready(self, timeout_s: float = 30) -> None:
        crictl = [str(tools.program(tools.CRICTL_1, "crictl")), "--runtime-endpoint", f"unix://{self.socket}"]
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"containerd {self.version} ended at once:\n{self.tail()}")
            if self.socket.exists():
                done = subprocess.run([*crictl, "info"], capture_output=True, text=True, check=False)
                if done.returncode == 0 and _ready(done.stdout):
                    return
            time.sleep(0.05)
        raise TimeoutError(f"containerd {self.version} is not ready after {timeout_s} s:\n{self.tail()}")

    def tail(self, lines: int = 25) -> str:
        """The end of the daemon's log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """End the daemon with SIGKILL, as a crash would. Pods go on."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kill the daemon and start it again on what it left."""
        self.kill()
        self.start()

    def bundle(self, container_id: str, namespace: str = "k8s.io") -> Path:
        """The bundle directory of a container."""
        return self.state / "io.containerd.runtime.v2.task" / namespace / container_id

    def shim_address(self, container_id: str, namespace: str = "k8s.io") -> tuple[str, int]:
        """The socket path and the task API version of the shim that serves a container."""
        bundle = self.bundle(container_id, namespace)
        if (bundle / "bootstrap.json").exists():
            found = json.loads((bundle / "bootstrap.json").read_text(encoding="utf-8"))
            return str(found["address"]).removeprefix("unix://"), int(found["version"])
        return (bundle / "address").read_text(encoding="utf-8").removeprefix("unix://"), 2

    def shim_pids(self, pod_id: str) -> list[int]:
        """The processes that are the shim of a pod: those with its id in their arguments, and no container's.

        Nor one's own child: who has made a container for it may be about to end yet.
        """
        found = {}
        for process in self.instance.processes():
            try:
                arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            named = any(b"containerd-shim-" in argument for argument in arguments[:3])
            if named and pod_id.encode() in arguments and process.state != "Z":
                found[process.pid] = process.parent
        return [pid for pid, parent in found.items() if parent not in found]

    def close(self) -> None:
        """End the daemon and whatever it started, and remove every trace."""
        stop(self.process)
        self.instance.destroy()


def _plugin_setting(version: str) -> str:
    """Where CNI plugins are: containerd 2.0 knows of one directory only."""
    return f'bin_dir = "{cni.PLUGINS}"' if version.startswith("2.0.") else f'bin_dirs = ["{cni.PLUGINS}"]'


def _ready(info: str) -> bool:
    conditions = json.loads(info)["status"]["conditions"]
    wanted = {"RuntimeReady", "NetworkReady"}
    return wanted <= {condition["type"] for condition in conditions if condition["status"]}


def _snapshotter(directory: Path) -> str:
    """overlayfs, or copies where the scratch directory cannot hold an overlay (it is one itself)."""
    probe = directory / "probe"
    for name in ("lower", "upper", "work", "merged"):
        (probe / name).mkdir(parents=True)
    options = f"lowerdir={probe}/lower,upperdir={probe}/upper,workdir={probe}/work"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(probe / "merged")]
    works = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if works:
        subprocess.run(["umount", str(probe / "merged")], check=True)
    shutil.rmtree(probe)
    return "overlayfs" if works else "native"
