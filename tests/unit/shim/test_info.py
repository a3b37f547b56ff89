"""What `-v` and `-info` say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from runtime.stages.seal import Seal
from shim import info
from shim.api.codec import decode
from shim.api.runtime_info import RuntimeInfo
from shim.start_request import Origin
from shim.version import VERSION


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION
    assert VERSION.encode() in info.version_text()


def test_info_is_a_runtime_info_with_features_in_json() -> None:
    answer = decode(RuntimeInfo, info.runtime_info(Origin(Seal(True))))
    assert answer.name == "io.containerd.manor.v2"
    assert answer.version is not None
    assert answer.version.version == VERSION
    assert answer.annotations == {"manor.seal": "sealed"}
    assert answer.features is not None
    assert answer.features.type_url.endswith("/runtime-spec/1/features/Features")
    assert json.loads(answer.features.value) == info.features()


def test_a_shim_that_is_not_protected_says_so_and_why() -> None:
    origin = Origin(Seal(False, "vm.memfd_noexec is 2"), "no warden came up")
    answer = decode(RuntimeInfo, info.runtime_info(origin))
    assert answer.annotations == {
        "manor.seal": "not sealed: vm.memfd_noexec is 2",
        "manor.without-warden": "no warden came up",
    }


def test_what_containerd_asks_of_a_handler_for_user_namespaces_is_there() -> None:
    linux: Any = info.features()["linux"]
    assert "user" in linux["namespaces"]
    assert linux["mountExtensions"]["idmap"]["enabled"] is True
