"""Which CPUs a process is put on, before and after it joins its cgroup: one decision, as a table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime.affinity import (
    ANNOTATION,
    DEFINITIVE,
    LANDLORD,
    TEMPORARY,
    AffinityPlan,
    eligible_cpu,
    format_cpu_list,
    isolated_cpus,
    parse_cpu_list,
    plan_tenant,
)
from runtime.errors import ConfigError, InvalidArgument, ManorError
from runtime.linux import sched
from runtime.spec.model import ExecCpuAffinity
from tests.unit.runtime.forked import in_child

if TYPE_CHECKING:
    from pathlib import Path

ISOLATED = (4, 5, 6, 7)
ALL_ISOLATED, MIXED, APART = "4-7", "2-7", "0-3"
INITIAL = ExecCpuAffinity(initial="1")
FINAL = ExecCpuAffinity(final="2-3")
BOTH = ExecCpuAffinity("1", "2-3")

RESET = AffinityPlan()
STAY_ON_1 = AffinityPlan((1,), None, False)
GO_TO_2_3 = AffinityPlan(None, (2, 3), False)
FROM_1_TO_2_3 = AffinityPlan((1,), (2, 3), False)
WARNING = (f"annotation {ANNOTATION} has no effect: execCPUAffinity.initial is given",)


def on(cpu: int, after: tuple[int, ...] | None = None, reset: bool = True) -> AffinityPlan:
    return AffinityPlan((cpu,), after, reset)


def warned(plan: AffinityPlan) -> AffinityPlan:
    return AffinityPlan(plan.before_join, plan.after_join, plan.reset, WARNING)


# annotation, isolated CPUs, the container's cpuset, execCPUAffinity → the plan
TABLE = [
    # Without an annotation isolated CPUs play no part.
    (None, ISOLATED, ALL_ISOLATED, None, RESET),
    (None, ISOLATED, MIXED, None, RESET),
    (None, (), None, None, RESET),
    ("", ISOLATED, ALL_ISOLATED, None, RESET),
    (None, ISOLATED, ALL_ISOLATED, INITIAL, STAY_ON_1),
    (None, ISOLATED, ALL_ISOLATED, FINAL, GO_TO_2_3),
    (None, ISOLATED, ALL_ISOLATED, BOTH, FROM_1_TO_2_3),
    (None, (), None, ExecCpuAffinity(), RESET),
    (None, (), None, ExecCpuAffinity("", ""), RESET),
    # No isolated CPU, no cpuset, or none of the one in the other: no CPU to be on.
    (TEMPORARY, (), ALL_ISOLATED, None, RESET),
    (TEMPORARY, ISOLATED, None, None, RESET),
    (TEMPORARY, ISOLATED, "", None, RESET),
    (TEMPORARY, ISOLATED, APART, None, RESET),
    (DEFINITIVE, (), ALL_ISOLATED, None, RESET),
    (DEFINITIVE, ISOLATED, None, None, RESET),
    (DEFINITIVE, ISOLATED, "", None, RESET),
    (DEFINITIVE, ISOLATED, APART, None, RESET),
    # … so that execCPUAffinity is not in its way and nobody need be warned.
    (TEMPORARY, ISOLATED, APART, INITIAL, STAY_ON_1),
    (DEFINITIVE, (), ALL_ISOLATED, BOTH, FROM_1_TO_2_3),
    (DEFINITIVE, ISOLATED, APART, FINAL, GO_TO_2_3),
    # All of the cpuset is isolated: its first CPU.
    (TEMPORARY, ISOLATED, ALL_ISOLATED, None, on(4)),
    (DEFINITIVE, ISOLATED, ALL_ISOLATED, None, on(4, reset=False)),
    (TEMPORARY, ISOLATED, ALL_ISOLATED, FINAL, on(4, (2, 3), reset=False)),
    (DEFINITIVE, ISOLATED, ALL_ISOLATED, FINAL, on(4, (2, 3), reset=False)),
    (TEMPORARY, ISOLATED, ALL_ISOLATED, INITIAL, warned(STAY_ON_1)),
    (DEFINITIVE, ISOLATED, ALL_ISOLATED, INITIAL, warned(STAY_ON_1)),
    (TEMPORARY, ISOLATED, ALL_ISOLATED, BOTH, warned(FROM_1_TO_2_3)),
    (DEFINITIVE, ISOLATED, ALL_ISOLATED, BOTH, warned(FROM_1_TO_2_3)),
    # Some of it is isolated: its first housekeeping CPU, also where an isolated one comes before.
    (TEMPORARY, ISOLATED, MIXED, None, on(2)),
    (DEFINITIVE, ISOLATED, MIXED, None, on(2, reset=False)),
    (TEMPORARY, ISOLATED, "5,6,9", None, on(9)),
    (DEFINITIVE, ISOLATED, "4-8", FINAL, on(8, (2, 3), reset=False)),
    (TEMPORARY, ISOLATED, MIXED, INITIAL, warned(STAY_ON_1)),
    (DEFINITIVE, ISOLATED, MIXED, BOTH, warned(FROM_1_TO_2_3)),
]


@pytest.mark.parametrize(("annotation", "isolated", "cpuset", "affinity", "plan"), TABLE)
def test_the_decision_table(
    annotation: str | None,
    isolated: tuple[int, ...],
    cpuset: str | None,
    affinity: ExecCpuAffinity | None,
    plan: AffinityPlan,
) -> None:
    assert plan_tenant(annotation, isolated, cpuset, affinity) == plan


def test_a_landlord_is_always_reset() -> None:
    assert (LANDLORD.before_join, LANDLORD.after_join, LANDLORD.reset) == (None, None, True)


@pytest.mark.parametrize("value", ["Temporary", "permanent", "temporary ", "0"])
@pytest.mark.parametrize("cpuset", [ALL_ISOLATED, None])
def test_an_unknown_annotation_is_refused_by_name_and_value(value: str, cpuset: str | None) -> None:
    with pytest.raises(InvalidArgument) as failure:
        plan_tenant(value, ISOLATED, cpuset, None)
    assert repr(value) in str(failure.value)
    assert ANNOTATION in str(failure.value)


@pytest.mark.parametrize("field", ["initial", "final"])
@pytest.mark.parametrize("text", ["x", "3-1", ",", "1-", "8192"])
def test_a_bad_list_names_its_field(field: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"process\.execCPUAffinity\.{field}"):
        plan_tenant(None, (), None, ExecCpuAffinity(**{field: text}))


@pytest.mark.parametrize(
    ("cpuset", "isolated", "cpu"),
    [
        ("0-1,16-17,32-33", "2-15,18-31,34-47", None),
        ("2-15,18-31,34-47", "0-1,16-17,32-33", None),
        ("8-31", "2-15,18-31,34-47", 16),
        ("4-7", "2-15,18-31,34-47", 4),
        ("40-47", "2-15,18-31,34-47", 40),
        ("24-31", "2-15,18-31,34-47", 24),
        ("60-63", "0-1", None),
        ("0-8191", "8191", 0),
    ],
)
def test_the_eligible_cpu_on_large_machines(cpuset: str, isolated: str, cpu: int | None) -> None:
    assert eligible_cpu(parse_cpu_list(cpuset), parse_cpu_list(isolated)) == cpu


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", ()),
        ("0", (0,)),
        ("0-3,7", (0, 1, 2, 3, 7)),
        (" , 1   , 3  ,  5-7,    ", (1, 3, 5, 6, 7)),
        ("7,1-2,2", (1, 2, 7)),
        ("0-3\n", (0, 1, 2, 3)),
        ("8191", (8191,)),
        ("0-9:2/4", (0, 1, 4, 5, 8, 9)),
    ],
)
def test_lists_are_read_as_the_kernel_writes_them(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    "text",
    [
        "-",
        "1-",
        "-3",
        "54-53",
        "1 - 2",
        "+1",
        "1_0",
        "\uff11",
        "²",
        "0x1",
        "8192",
        "9" * 5000,
        "1:2/4",
        "0-3:0/2",
    ],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="list"):
        parse_cpu_list(text)


@pytest.mark.parametrize("text", ["", "0", "0-2,7", "1,3,5-4095"])
def test_format_is_the_inverse_of_parse(text: str) -> None:
    assert format_cpu_list(parse_cpu_list(text)) == text


@pytest.mark.parametrize(
    ("cmdline", "sysfs", "cpus"),
    [
        ("ro nohz_full=2-3 quiet\n", "0-1\n", (2, 3)),
        ("ro quiet\n", "0-1\n", (0, 1)),
        ("ro nohz_full= quiet\n", "0-1\n", (0, 1)),
        ("isolcpus=1 xnohz_full=2\n", "\n", ()),
        ("ro\n", "(null)\n", ()),
        ("ro\n", None, ()),
        (None, "5\n", (5,)),
        (None, None, ()),
    ],
)
def test_where_isolated_cpus_come_from(
    tmp_path: Path, cmdline: str | None, sysfs: str | None, cpus: tuple[int, ...]
) -> None:
    files = {"cmdline": cmdline, "sysfs": sysfs}
    for name, text in files.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    assert isolated_cpus(str(tmp_path / "cmdline"), str(tmp_path / "sysfs")) == cpus


def test_the_last_cpu_may_be_called_by_its_letter(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("nohz_full=1-N")
    last = os.sysconf("SC_NPROCESSORS_CONF") - 1
    if last < 1:
        pytest.skip("one CPU only")
    assert isolated_cpus(str(tmp_path / "cmdline"))[-1] == last


def test_a_bad_isolated_list_names_its_source(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("nohz_full=core0")
    with pytest.raises(ManorError, match=r"isolated CPUs from .*cmdline: .*core0"):
        isolated_cpus(str(tmp_path / "cmdline"))


# ---- the system calls --------------------------------------------------------------------------


def test_a_mask_has_whole_words_and_any_width() -> None:
    assert sched.bit_mask((0,)) == b"\x01" + b"\0" * 7
    assert sched.bit_mask((63,)) == b"\0" * 7 + b"\x80" + b"\0" * 8
    assert len(sched.bit_mask((8191,))) == 1032


def test_affinity_is_set_and_reset() -> None:
    def work() -> list[list[int]]:
        everything = sched.sched_getaffinity(0)
        sched.sched_setaffinity(0, everything[-1:])
        confined = sched.sched_getaffinity(0)
        sched.reset_affinity()
        return [list(everything), list(confined), list(sched.sched_getaffinity(0))]

    everything, confined, after = in_child(work)
    assert confined == everything[-1:]
    assert set(after) >= set(everything)


def test_restore_gives_a_confined_process_its_confinement_back() -> None:
    def work() -> list[list[int]]:
        sched.reset_affinity()
        everything = sched.sched_getaffinity(0)
        sched.restore_affinity(everything)
        free = sched.sched_getaffinity(0)
        sched.restore_affinity(everything[:1])
        return [list(everything), list(free), list(sched.sched_getaffinity(0))]

    everything, free, confined = in_child(work)
    assert free == everything
    assert confined == everything[:1]


def test_cpus_that_do_not_exist_are_named() -> None:
    with pytest.raises(OSError, match="sched_setaffinity") as failure:
        sched.sched_setaffinity(0, (8000, 8001))
    assert failure.value.filename == "CPUs 8000 8001"
