"""Device rules: the policy they come to, the v1 writes, and the v2 program, run here by an interpreter of our own."""

from __future__ import annotations

import random
import struct

import pytest

from runtime.cgroups import device_program as asm
from runtime.cgroups.device_program import device_program
from runtime.cgroups.devices import DeviceKey, DevicePolicy, plan_devices, v1_steps
from runtime.errors import ConfigError
from runtime.spec.model import DeviceRule

DENY_ALL = DeviceRule(allow=False)
ALLOW_ALL = DeviceRule(allow=True)
LOOP = DeviceKey("b", 7, 0)


def allow(kind: str, major: int | None, minor: int | None, access: str = "rwm") -> DeviceRule:
    return DeviceRule(allow=True, type=kind, major=major, minor=minor, access=access)


def deny(kind: str, major: int | None, minor: int | None, access: str = "rwm") -> DeviceRule:
    return DeviceRule(allow=False, type=kind, major=major, minor=minor, access=access)


def exceptions(*rules: DeviceRule) -> dict[str, str]:
    """What the rules add to the defaults."""
    defaults = dict(plan_devices(()).exceptions)
    found = dict(plan_devices(rules).exceptions)
    return {str(key): access for key, access in found.items() if defaults.get(key) != access}


def test_no_rules_allow_the_default_devices_alone() -> None:
    policy = plan_devices(())
    assert not policy.allow_by_default
    assert {str(key): access for key, access in policy.exceptions} == {
        "c *:*": "m",
        "b *:*": "m",
        "c 1:3": "rwm",
        "c 1:5": "rwm",
        "c 1:7": "rwm",
        "c 1:8": "rwm",
        "c 1:9": "rwm",
        "c 5:0": "rwm",
        "c 5:2": "rwm",
        "c 136:*": "rwm",
        "c 10:200": "rwm",
    }


def test_rules_are_added_to_the_default_devices() -> None:
    assert exceptions(DENY_ALL, allow("b", 7, 0, "rw"), allow("b", 7, 0, "m")) == {"b 7:0": "rwm"}


def test_privileged_container_is_denied_nothing() -> None:
    assert plan_devices((DENY_ALL, ALLOW_ALL)) == DevicePolicy(allow_by_default=True)


def test_rule_for_everything_forgets_what_came_before_it() -> None:
    assert plan_devices((allow("b", 7, 0), DENY_ALL)) == plan_devices(())
    assert plan_devices((ALLOW_ALL, deny("b", 7, 0), ALLOW_ALL)) == DevicePolicy(allow_by_default=True)


def test_some_access_to_every_device_is_not_every_access() -> None:
    policy = plan_devices((DENY_ALL, allow("a", None, None, "r")))
    assert not policy.allow_by_default
    assert dict(policy.exceptions)[DeviceKey("b", None, None)] == "rm"
    assert dict(policy.exceptions)[DeviceKey("c", None, None)] == "rm"


def test_denying_some_access_to_every_device_denies_all_of_it() -> None:
    assert plan_devices((ALLOW_ALL, deny("a", None, None, "w"))) == plan_devices(())


def test_one_number_of_either_kind_is_not_every_device() -> None:
    assert exceptions(DENY_ALL, allow("a", 7, 0)) == {"b 7:0": "rwm", "c 7:0": "rwm"}


def test_later_rule_wins_over_those_that_it_covers() -> None:
    assert exceptions(allow("b", 7, 0, "rw"), allow("b", 7, 1), deny("b", 7, None, "w")) == {
        "b 7:0": "r",
        "b 7:1": "rm",
    }
    assert exceptions(allow("b", 7, 0), deny("b", 7, None)) == {}


def test_denial_among_allowed_devices_stays_until_it_is_allowed_again() -> None:
    policy = plan_devices((ALLOW_ALL, deny("b", 7, 0), deny("b", 8, None, "w"), allow("b", 7, 0)))
    assert policy.allow_by_default
    assert [(str(key), access) for key, access in policy.exceptions] == [("b 8:*", "w")]


@pytest.mark.parametrize(
    "rules",
    [
        (allow("b", 7, None), deny("b", 7, 0)),
        (allow("c", None, None, "r"), deny("c", 10, 229, "r")),
        (ALLOW_ALL, deny("c", 1, None), allow("c", 1, 11)),
        (ALLOW_ALL, deny("c", None, None)),
    ],
)
def test_hole_in_a_broader_rule_is_refused(rules: tuple[DeviceRule, ...]) -> None:
    with pytest.raises(ConfigError, match="cut a hole"):
        plan_devices(rules)


@pytest.mark.parametrize(
    "rule",
    [
        DeviceRule(allow=True, type="x"),
        DeviceRule(allow=True, type="c", access="ax"),
        DeviceRule(allow=True, type="c", access=""),
        DeviceRule(allow=True, type="c", major=1 << 32),
        DeviceRule(allow=True, type="c", minor=-2),
    ],
)
def test_rule_that_means_nothing_is_refused(rule: DeviceRule) -> None:
    with pytest.raises(ConfigError, match=r"linux\.resources\.devices\[1\]"):
        plan_devices((DENY_ALL, rule))


def test_letters_that_mean_nothing_are_passed_over_as_by_runc() -> None:
    policy = plan_devices((DENY_ALL, allow("c", 1, 11, "warx")))
    assert dict(policy.exceptions)[DeviceKey("c", 1, 11)] == "rw"


# ---- v1 ----------------------------------------------------------------------------------------


def test_v1_new_cgroup_is_closed_before_it_is_opened() -> None:
    first, second = v1_steps(DevicePolicy(False, ((LOOP, "rw"),)))
    assert first == ("devices.deny", ["a"])
    assert second == ("devices.allow", ["b 7:0 rw"])


def test_v1_allowing_policy_opens_first_and_then_denies() -> None:
    assert v1_steps(DevicePolicy(True, ((LOOP, "w"),)), "b 7:0 rwm\n") == (
        ("devices.allow", ["a"]),
        ("devices.deny", ["b 7:0 w"]),
    )


def test_v1_update_takes_nothing_away_that_stays_allowed() -> None:
    policy = DevicePolicy(False, ((LOOP, "rw"), (DeviceKey("c", 136, None), "rwm")))
    current = "b 7:0 rwm\nc 136:* rwm\nc 1:11 r\n"
    assert v1_steps(policy, current) == (
        ("devices.allow", ["b 7:0 rw", "c 136:* rwm"]),
        ("devices.deny", ["b 7:0 m", "c 1:11 r"]),
    )


def test_v1_update_of_an_open_cgroup_resets_it() -> None:
    assert v1_steps(DevicePolicy(False, ()), "a *:* rwm\n")[0] == ("devices.deny", ["a"])


# ---- v2 ----------------------------------------------------------------------------------------

ACCESS = {"m": 1, "r": 2, "w": 4}


def execute(program: bytes, kind: str, access: str, major: int, minor: int) -> int:
    """Run `program` on one request, as the kernel would."""
    mask = sum(ACCESS[letter] for letter in access)
    context = struct.pack("<III", mask << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 10
    position = 0
    while True:
        code, pair, offset, value = struct.unpack_from("<BBhi", program, 8 * position)
        to, of = pair & 15, pair >> 4
        position += 1
        if code == asm.LDX_W:
            assert of == 1
            (registers[to],) = struct.unpack_from("<I", context, offset)
        elif code == asm.ALU64_MOV_X:
            registers[to] = registers[of]
        elif code == asm.ALU64_MOV_K:
            registers[to] = value
        elif code == asm.ALU64_AND_K:
            registers[to] &= value
        elif code == asm.ALU64_RSH_K:
            registers[to] >>= value
        elif code == asm.JMP32_JNE_K:
            position += offset if registers[to] & 0xFFFFFFFF != value & 0xFFFFFFFF else 0
        elif code == asm.JMP_JNE_K:
            position += offset if registers[to] != value else 0
        elif code == asm.JMP_JEQ_K:
            position += offset if registers[to] == value else 0
        else:
            assert code == asm.EXIT
            return registers[0]


def allowed(policy: DevicePolicy, kind: str, access: str, major: int, minor: int) -> bool:
    """What the policy says of a request, put as simply as can be."""
    matching = [have for key, have in policy.exceptions if key.covers(DeviceKey(kind, major, minor))]
    if policy.allow_by_default:
        return not any(set(access) & set(have) for have in matching)
    return any(set(access) <= set(have) for have in matching)


def test_v2_program_decides_as_the_policy_does() -> None:
    chance = random.Random(20)
    numbers = [0, 1, 7, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    accesses = ["r", "w", "m", "rw", "rm", "wm", "rwm"]
    for _case in range(300):
        keys = {
            DeviceKey(chance.choice("bc"), chance.choice([None, *numbers]), chance.choice([None, *numbers]))
            for _each in range(chance.randrange(5))
        }
        policy = DevicePolicy(chance.random() < 0.5, tuple((key, chance.choice(accesses)) for key in keys))
        program = device_program(policy)
        for _request in range(20):
            kind, access = chance.choice("bc"), chance.choice(accesses)
            major, minor = chance.choice(numbers), chance.choice(numbers)
            expected = allowed(policy, kind, access, major, minor)
            assert execute(program, kind, access, major, minor) == expected, (
                policy,
                kind,
                access,
                major,
                minor,
            )


def test_v2_program_of_the_default_devices() -> None:
    program = device_program(plan_devices((DENY_ALL,)))
    assert execute(program, "c", "rw", 1, 3)
    assert execute(program, "c", "rw", 136, 12)
    assert execute(program, "b", "m", 8, 0)
    assert not execute(program, "b", "r", 8, 0)
    assert not execute(program, "c", "r", 1, 11)
    assert not execute(program, "b", "rw", 1, 3)
