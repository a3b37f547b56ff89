"""A state.json that nobody owns, for tests of who reads them."""

from __future__ import annotations

import json


def state_json(container_id: str = "c1", **changes: object) -> str:
    """Of a container whose init is no process any more, and whose cgroup is `/own`."""
    state = {
        "id": container_id,
        "bundle": "/nowhere",
        "pid": 2**22,  # more than there can be
        "start_time": 1,
        "created": "2026-01-01T00:00:00.000000000Z",
        "cgroups_path": "/own",
        "cgroup_directories": [],
        "namespaces": 0,
        "rootfs": "/nowhere",
        "annotations": {},
        "oci_version": "1.0.2",
        "stdio": [],
        "version": 1,
    }
    return json.dumps(state | changes)
