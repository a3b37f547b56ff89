"""What the delete action takes a bundle's config for: a create that was cut short, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from shim import delete
from shim.delete import Remains


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cgroups that were gone for, none of which exists."""
    paths: list[str] = []

    def open_cgroup(_layout: object, path: str, _container_id: str) -> SimpleNamespace:
        paths.append(path)
        return SimpleNamespace(paths={})

    monkeypatch.setattr(delete, "open_cgroup", open_cgroup)
    monkeypatch.setattr(delete, "cgroup_asked_for", open_cgroup)
    return paths


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    path = tmp_path / "bundle"
    path.mkdir()
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {"cgroupsPath": "/somebody"},
    }
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def state_of(container_id: str) -> str:
    return json.dumps(
        {
            "id": container_id,
            "bundle": "/nowhere",
            "pid": 2**22,  # more than there can be
            "start_time": 1,
            "created": "",
            "cgroups_path": "/own",
            "cgroup_directories": [],
            "namespaces": 0,
            "rootfs": "/nowhere",
            "annotations": {},
            "oci_version": "1.0.2",
            "stdio": [],
            "version": 1,
        }
    )


@pytest.mark.parametrize(
    ("container_id", "content", "wanted"),
    [
        (None, None, []),
        ("c1", None, ["/somebody"]),
        ("c1", "{", ["/somebody"]),
        ("c1", state_of("c1"), ["/own"]),
        ("other", None, []),
        ("other", state_of("other"), ["/own"]),
    ],
)
def test_the_config_counts_only_for_an_id_with_a_directory_and_no_state(
    tmp_path: Path,
    opened: list[str],
    bundle: str,
    container_id: str | None,
    content: str | None,
    wanted: list[str],
) -> None:
    root = tmp_path / "pod"
    root.mkdir()
    (root / "@socket").write_text("/nowhere")
    if container_id is not None:
        (root / container_id).mkdir()
        if content is not None:
            (root / container_id / "state.json").write_text(content)
    Remains(str(root), SimpleNamespace()).remove_all("c1", bundle)  # type: ignore[arg-type]
    assert opened == wanted
    assert not root.exists()
