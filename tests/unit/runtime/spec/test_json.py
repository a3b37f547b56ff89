"""Strict JSON: what is accepted is what the standard library reads, and much that it reads is not accepted."""

from __future__ import annotations

import json as standard
import random
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.spec.json import LIMIT_DEPTH, JsonError, dump, parse

SAMPLE = Path(__file__).with_name("cri_container.json").read_bytes()
ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '""',
        "0",
        "-1",
        "1.5",
        "1e3",
        "true",
        "null",
        ' {"a" : [ 1 , {"b":null} ]}\r\n\t',
        '"\\u00e9\\n"',
        '"é"',
    ],
)
def test_json_is_read_as_the_standard_library_reads_it(text: str) -> None:
    assert parse(text.encode()) == standard.loads(text)


def test_a_whole_config_is_read_as_the_standard_library_reads_it() -> None:
    assert parse(SAMPLE) == standard.loads(SAMPLE)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "a value is expected in line 1, column 1"),
        (b"[1,", "a value is expected in line 1, column 4"),
        (b'{"a":\n [1, 2 3]}', "expecting ',' delimiter in line 2, column 8"),
        (b'{"a" 1}', "expecting ':' delimiter"),
        (b"{1: 2}", "expecting property name"),
        (b'"a', "unterminated string"),
        (b'"\\q"', r"invalid \\escape"),
        (b'"a\nb"', "invalid control character"),
        (b"{} x", "extra text after the value in line 1, column 4"),
        (b"nul", "a value is expected"),
        (b"'a'", "a value is expected"),
        (b"\xef\xbb\xbf{}", "a value is expected"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' appears twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e999]", "1e999 is out of range"),
        (b"1" * 5000, "an integer is too long"),
        (b'["\\u0000"]', "a NUL character"),
        (b'{"\\u0000": 1}', "a NUL character"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'"\\uDCFF"', "half of a surrogate pair"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b'{"a":' * 100_000, "nested deeper than 64"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_its_place(text: bytes, complaint: str) -> None:
    with pytest.raises(JsonError, match=complaint):
        parse(text)


@pytest.mark.parametrize("innermost", [b"", b"1", b'"x"'])
def test_nesting_is_allowed_to_the_limit_and_no_deeper(innermost: bytes) -> None:
    parse(b"[" * LIMIT_DEPTH + innermost + b"]" * LIMIT_DEPTH)
    with pytest.raises(JsonError, match="nested deeper"):
        parse(b"[" * (LIMIT_DEPTH + 1) + innermost + b"]" * (LIMIT_DEPTH + 1))


def test_text_over_the_size_limit_is_refused_unread() -> None:
    with pytest.raises(JsonError, match="10 bytes of JSON exceed the limit of 9"):
        parse(b"[" * 10, limit_bytes=9)


def test_an_escaped_backslash_before_a_u_is_no_surrogate() -> None:
    assert parse(b'"\\\\ud800 \\\\u0000"') == "\\ud800 \\u0000"


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_damaged_text_is_read_rightly_or_refused_and_nothing_else() -> None:
    chance = random.Random(2)
    for _ in range(1500):
        text = bytearray(SAMPLE[: chance.randrange(len(SAMPLE))] if chance.random() < 0.2 else SAMPLE[:1500])
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(text) + 1)
            text[at : at + chance.randrange(3)] = chance.choice(
                [
                    b"",
                    b"{",
                    b"}",
                    b"[",
                    b"]",
                    b'"',
                    b",",
                    b":",
                    b"\\",
                    b"\\u00",
                    b"0",
                    b"e",
                    b"-",
                    b"\xc3",
                    b"\0",
                ]
            )
        try:
            value = parse(bytes(text))
        except JsonError:
            continue
        assert value == standard.loads(bytes(text))


def test_what_is_dumped_is_parsed_to_the_same_value() -> None:
    value = {"a": [1, -2, None, True, False, 'é\n"\\\u2028\x7f'], "": {}, "b": []}
    assert dump(value) == standard.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert parse(dump(value)) == value
    assert dump(((1,), ())) == b"[[1],[]]"


def test_what_has_no_json_form_is_not_dumped() -> None:
    with pytest.raises(JsonError, match="not Unicode"):
        dump({"a": "\ud800"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump(float("nan"))
    with pytest.raises(TypeError, match="object has no JSON form"):
        dump(object())


BAD = [
    b'{"a":1,}',
    b'"\\q"',
    b"[1 2]",
    b'"a',
    b"{1}",
    b"nul",
    b'{"a":1,"a":2}',
    b"[" * 9999,
    b"NaN",
    b"\xff",
    b"1" * 5000,
]


def test_no_error_path_imports_the_json_package() -> None:
    """In a shim every late import is memory that is not shared any more, and a file read that may have changed."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from runtime.spec.json import JsonError, parse
before = set(sys.modules)
for text in {BAD!r}:
    try:
        parse(text)
    except JsonError:
        continue
    raise SystemExit(f"{{text!r}} was accepted")
print(sorted(set(sys.modules) - before), sorted({{"json", "re", "json.decoder"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-ISc", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[] []\n", "")
