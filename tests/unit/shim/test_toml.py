"""Options as TOML: what is read is what the standard library's parser reads, and the rest is refused by line."""

from __future__ import annotations

import random
import tomllib

import pytest

from shim.toml import MOST_BYTES, MOST_KEYS, TomlError, parse

# As containerd 1.7 writes a handler's table, as 2.x does, and as a person might.
TEXTS = [
    'BinaryName = "/usr/bin/x"\nIoGid = 0\nSystemdCgroup = true\n',
    "BinaryName = ''\nIoUid = 1000\nShimCgroup = '/shims'\nSystemdCgroup = false\n",
    '# options\n\n  IoUid = 1_000 # of us\r\n\'Root\' = "/run/\\u00e4\\t\\"x\\""\n"NoPivotRoot"=true',
    "a = 0xff\nb = 0o17\nc = 0b11\nd = -5\ne = +7\nf = 0",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_flat_table_is_read(text: str) -> None:
    assert parse(text.encode()) == tomllib.loads(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[runtime]", "line 1: tables"),
        ("a = 1\na = 2", "line 2: a is there twice"),
        ("a.b = 1", "dotted keys"),
        ("a = [1]", "arrays"),
        ("a = {}", "arrays and inline tables"),
        ('a = """x"""', "several lines"),
        ("a = 1.5", "no value that is supported"),
        ("a = 1979-05-27", "no value that is supported"),
        ("a = 007", "no value that is supported"),
        ("a = 0x-1", "no value that is supported"),
        ("a = 1__0", "no value that is supported"),
        ("a = True", "no value that is supported"),
        ("a =", "a value is missing"),
        ("a = # 1", "a value is missing"),
        ("a", "'=' expected"),
        ("= 1", "is no key"),
        ('a = "x', "does not end"),
        ('a = "\\x"', "escape"),
        ('a = "\\ud800"', "no character"),
        ('a = "x" y', "behind the value"),
        ("a = 'x\x00'", "control character"),
        ("# \x07", "control character"),
    ],
)
def test_what_is_more_than_that_or_no_toml_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(TomlError, match=complaint):
        parse(text.encode())


def test_the_text_is_bounded_and_must_be_utf_8() -> None:
    for data in (b"#" * (MOST_BYTES + 1), b"a = '\xff'"):
        with pytest.raises(TomlError):
            parse(data)
    with pytest.raises(TomlError, match=f"more than {MOST_KEYS} keys"):
        parse(b"".join(b"k%d = 1\n" % number for number in range(MOST_KEYS + 1)))


PIECES = [
    *("a", "B", "_", "-", "=", " ", "\t", '"', "'", "\\", "u0041", "U0001F600", "n", "0", "1", "0x", "0o7"),
    *("+", "true", "false", "#", "\n", "\r\n", "[", "]", ".", "é", '"a"', "'b'", "k = ", "1979-05-27", "inf"),
]


def test_nothing_is_ever_misread() -> None:
    choose = random.Random(17)
    read = 0
    for _ in range(20_000):
        text = "k = " * choose.getrandbits(1) + "".join(choose.choices(PIECES, k=choose.randint(1, 8)))
        try:
            got = parse(text.encode())
        except TomlError:
            continue
        wanted = tomllib.loads(text)
        assert (got, [type(each) for each in got.values()]) == (wanted, [type(v) for v in wanted.values()])
        read += 1
    assert read > 200
