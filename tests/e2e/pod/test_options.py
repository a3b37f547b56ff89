"""A handler's options in containerd's configuration, and what they do to its containers."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.e2e.conftest import Node
from tests.e2e.userns.test_userns import BASE, in_user_namespace

VISIBLE: dict[str, Any] = {"security_context": {"masked_paths": []}}


def has_keyring(node: Node, container: str) -> bool:
    keys = node.crictl.execute(container, "cat", "/proc/keys").stdout
    return f"_ses.{container}" in keys


@pytest.mark.versions("2.3")
@pytest.mark.parametrize("handler", ["manor-options", "manor-as-runc"])
def test_they_reach_a_container_in_either_form(node: Node, handler: str) -> None:
    pod = node.crictl.run_pod(handler)
    container = node.crictl.run_container(pod, ["sleep", "1000"], linux=VISIBLE)
    assert os.stat(f"/proc/{node.crictl.pid(container)}/fd/1").st_gid == 4321
    assert not has_keyring(node, container)
    assert "option BinaryName" in node.containerd.log.read_text()


@pytest.mark.versions("2.3")
def test_they_go_with_a_user_namespace_whose_streams_have_its_ids(node: Node) -> None:
    """By runc's message: containerd 2.3 cannot add these ids to options that are text."""
    pod = node.crictl.run_pod("manor-as-runc", **in_user_namespace())
    container = node.crictl.run_container(pod, ["sleep", "1000"], linux=in_user_namespace(masked_paths=[]))
    status = os.stat(f"/proc/{node.crictl.pid(container)}/fd/1")
    assert (status.st_uid, status.st_gid) == (BASE, BASE)
    assert not has_keyring(node, container)


def test_without_them_a_container_has_its_keyring(node: Node) -> None:
    pod = node.crictl.run_pod("manor")
    container = node.crictl.run_container(pod, ["sleep", "1000"], linux=VISIBLE)
    assert has_keyring(node, container)
