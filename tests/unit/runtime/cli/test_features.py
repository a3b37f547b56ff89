"""What `features` claims is what the code goes by."""

from __future__ import annotations

import pytest

from runtime.cli.features import document
from runtime.rootfs.options import parse_options
from runtime.spec import model
from runtime.spec.load import load_spec


def test_lists_are_sorted_where_runcs_are_and_hold_nothing_twice() -> None:
    features = document()
    linux = features["linux"]
    for listed in (
        features["mountOptions"],
        linux["namespaces"],
        linux["seccomp"]["actions"],
        linux["seccomp"]["operators"],
        linux["seccomp"]["archs"],
        linux["memoryPolicy"]["modes"],
        linux["memoryPolicy"]["flags"],
    ):
        assert listed == sorted(set(listed))
    assert len(linux["capabilities"]) == len(set(linux["capabilities"]))


@pytest.mark.parametrize("version", ["ociVersionMin", "ociVersionMax"])
def test_configs_of_both_versions_are_taken(version: str) -> None:
    config = b'{"ociVersion": "%s", "root": {"path": "x"}, "process": {"cwd": "/", "args": ["x"]}}'
    assert load_spec(config % document()[version].encode()).oci_version == document()[version]


def test_a_known_option_is_not_left_to_the_file_system() -> None:
    for word in document()["mountOptions"]:
        assert word not in str(parse_options((word,)).data)


def test_every_kind_of_hook_is_in_the_model() -> None:
    snake = ["".join(f"_{c.lower()}" if c.isupper() else c for c in name) for name in document()["hooks"]]
    assert tuple(snake) == model.Hooks.FIELD_NAMES
