"""From the options of `update` to resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.cli.arguments import Call, Globals, parse
from runtime.cli.update import VERBS, from_options, set_schemata, settle, size
from runtime.errors import CgroupError, ConfigError, InvalidArgument
from runtime.spec.model import BlockIo, Cpu, Memory, Pids, Resources

MIB = 1 << 20


def asked(*words: str) -> dict[str, Any]:
    verb = VERBS["update"]
    parsed = parse(words, verb.options, first_ends=False)
    return from_options(Call(verb, parsed.options, parsed.arguments, Globals("/x"), parsed.given))


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        *(
            ("4096", 4096),
            ("0", 0),
            ("1k", 1024),
            ("1K", 1024),
            ("1kb", 1024),
            ("1KiB", 1024),
            ("64M", 64 * MIB),
        ),
        *(("64 M", 64 * MIB), ("1.5g", 1536 * MIB), ("1T", 1 << 40), ("1pb", 1 << 50), ("7b", 7), ("7 B", 7)),
    ],
)
def test_sizes_have_dockers_units(text: str, bytes_: int) -> None:
    assert size("memory", text) == bytes_


@pytest.mark.parametrize(
    "text", ["", "x", "M", "-1", "-5M", "1..2M", "1,5M", "0x10", "1e3", "12x", "1kk", "1ibk", "1 2"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid value for memory: invalid s"):
        size("memory", text)


def test_nothing_asked_is_nothing() -> None:
    assert asked("id") == {}
    assert settle(asked("id")) == Resources()


def test_every_option_has_its_place() -> None:
    words = (
        "--memory 64M --memory-swap=-1 --memory-reservation 32M --cpu-period 1 --cpu-quota=-1 --cpu-burst 3 "
        "--cpu-share 4 --cpu-rt-period 5 --cpu-rt-runtime 6 --cpuset-cpus 0-1 --cpuset-mems 0 --cpu-idle 1 "
        "--pids-limit=-1 --blkio-weight 500 id"
    )
    assert settle(asked(*words.split())) == Resources(
        memory=Memory(limit=64 * MIB, swap=-1, reservation=32 * MIB),
        cpu=Cpu(
            period=1,
            quota=-1,
            burst=3,
            shares=4,
            realtime_period=5,
            realtime_runtime=6,
            cpus="0-1",
            mems="0",
            idle=1,
        ),
        pids=Pids(-1),
        block_io=BlockIo(weight=500),
    )


def test_a_limit_of_no_pids_is_one_and_an_empty_text_is_not() -> None:
    assert asked("--pids-limit", "0", "--memory=", "--cpu-share=", "--cpuset-cpus=", "id") == {
        "pids": {"limit": 0}
    }


@pytest.mark.parametrize(
    "word", ["--cpu-share=-1", "--cpu-period=x", "--cpu-quota=1.5", "--cpu-idle=yes", "--cpu-burst=\uff11"]
)
def test_a_number_that_is_none_names_its_option(word: str) -> None:
    option = word[2:].partition("=")[0]
    with pytest.raises(
        InvalidArgument, match=f'invalid value for {option}: strconv.Parse.*: parsing ".*": invalid'
    ):
        asked(word, "id")


@pytest.mark.parametrize(
    ("resources", "path"),
    [
        ({"memory": 7}, "memory"),
        ({"pids": {"limit": "x"}}, "pids.limit"),
        ({"blockIO": {"weight": 70000}}, "blockIO.weight"),
        ({"cpu": {"shares": -1}}, "cpu.shares"),
    ],
)
def test_what_is_wrong_names_its_path(resources: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settle(resources)
    assert caught.value.path == path


def test_schemata_go_to_the_group_and_not_to_its_monitoring_group(tmp_path: Path) -> None:
    (tmp_path / "schemata").write_text("")
    (tmp_path / "mon_groups" / "c").mkdir(parents=True)
    set_schemata(str(tmp_path / "mon_groups" / "c"), ["L3:0=f", "MB:0=20"])
    assert (tmp_path / "schemata").read_text() == "L3:0=f\nMB:0=20\n"
    with pytest.raises(CgroupError, match="No such file"):
        set_schemata(str(tmp_path / "nowhere"), ["L3:0=f"])
