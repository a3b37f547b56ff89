"""The bundle: a directory with a config.json (bundle.md)."""

from __future__ import annotations

import os

from runtime.errors import ConfigError
from runtime.linux.fds import OwnedFd
from runtime.spec.load import MAX_CONFIG_BYTES


def read_config(bundle: str) -> bytes:
    """The bundle's config.json. ConfigError when it cannot be read, or is too large to be one."""
    path = f"{bundle}/config.json"
    try:
        with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as fd:
            data = b""
            while part := os.read(fd.fileno(), 1 << 20):
                data += part
                if len(data) > MAX_CONFIG_BYTES:
                    raise ConfigError("", f"{path} has more than {MAX_CONFIG_BYTES} bytes")
    except OSError as error:
        raise ConfigError("", f"read {path}: {os.strerror(error.errno or 0)}") from error
    return data
