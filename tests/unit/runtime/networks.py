"""Two network namespaces for a test, without root: "here", with devices in it, and an empty one beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from runtime.linux import constants as c
from runtime.linux.process import setns, unshare
from tests.unit.runtime.forked import enter_user_namespace, in_child, needs_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable


def ip(*arguments: str) -> str:
    """What ip(8) prints; AssertionError with what it says when it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def devices() -> dict[str, dict[str, Any]]:
    """What ip(8) says of the devices in our namespace, by name."""
    return {device["ifname"]: device for device in json.loads(ip("-j", "address", "show"))}


def addresses(name: str) -> list[str]:
    """The addresses of a device, as "10.0.0.1/24", without those that the kernel makes by itself."""
    listed = devices()[name]["addr_info"]
    return [f"{info['local']}/{info['prefixlen']}" for info in listed if info["scope"] != "link"]


class Networks:
    """`there` is the file descriptor of the other namespace."""

    def __init__(self) -> None:
        ours = os.open("/proc/self/ns/net", os.O_RDONLY)
        unshare(c.CLONE_NEWNET)
        self.there = os.open("/proc/self/ns/net", os.O_RDONLY)
        setns(ours, c.CLONE_NEWNET)
        self._ours = ours

    def inside(self, work: Callable[[], Any]) -> Any:
        """The result of `work` in the other namespace."""
        setns(self.there, c.CLONE_NEWNET)
        try:
            return work()
        finally:
            setns(self._ours, c.CLONE_NEWNET)


def in_networks(work: Callable[[Networks], Any]) -> Any:
    """What `work` gives in a child that has two fresh network namespaces and may do with them what it likes."""

    def child() -> Any:
        enter_user_namespace(c.CLONE_NEWNET)
        ip("link", "set", "lo", "up")
        return work(Networks())

    return in_child(child)


def needs_networks(test: Any) -> Any:
    """Skips a test where it can neither make namespaces nor devices."""
    return needs_user_namespaces(
        pytest.mark.skipif(shutil.which("ip") is None, reason="no ip(8) on this machine")(test)
    )
