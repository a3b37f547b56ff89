"""What a runtime handler's configuration can bring along: the options of Create and Checkpoint.

containerd sends `runc.v1.Options` to runc's shim only and `RuntimeOptions` (its own fields, or the whole
TOML table as text) to all others. Source: containerd api/types/runc/options, api/types/runtimeoptions/v1.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, bool_, bytes_, string, strings, uint32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Options(Message):
    NAME = "containerd.runc.v1.Options"
    no_pivot_root: bool = bool_(1)
    no_new_keyring: bool = bool_(2)
    shim_cgroup: str = string(3)
    io_uid: int = uint32(4)
    io_gid: int = uint32(5)
    binary_name: str = string(6)
    root: str = string(7)
    systemd_cgroup: bool = bool_(9)
    criu_image_path: str = string(10)
    criu_work_path: str = string(11)
    task_api_address: str = string(12)
    task_api_version: int = uint32(13)


class CheckpointOptions(Message):
    NAME = "containerd.runc.v1.CheckpointOptions"
    exit: bool = bool_(1)
    open_tcp: bool = bool_(2)
    external_unix_sockets: bool = bool_(3)
    terminal: bool = bool_(4)
    file_locks: bool = bool_(5)
    empty_namespaces: Sequence[str] = strings(6)
    cgroups_mode: str = string(7)
    image_path: str = string(8)
    work_path: str = string(9)


class ProcessDetails(Message):
    NAME = "containerd.runc.v1.ProcessDetails"
    exec_id: str = string(1)


class RuntimeOptions(Message):
    NAME = "runtimeoptions.v1.Options"
    type_url: str = string(1)
    config_path: str = string(2)
    config_body: bytes = bytes_(3)
