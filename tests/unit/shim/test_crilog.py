"""The container log's format, without files: whatever way the bytes come in, the same lines come out."""

from __future__ import annotations

import random
import re

from shim.crilog import MAX_LINE_BYTES, Clock, LineTagger

NOW_NS = 1_790_000_000_123_456_789
LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([PF]) (.*)", re.DOTALL)


def tagged(*blocks: bytes, most: int = MAX_LINE_BYTES, end: bool = True) -> list[tuple[bytes, bytes]]:
    """Tag and content of each line that `blocks` come to."""
    tagger = LineTagger("stdout", Clock(), most)
    text = b"".join(tagger.feed(block, NOW_NS) for block in blocks)
    text += tagger.end(NOW_NS) if end else b""
    assert not text or text.endswith(b"\n")
    found = [LINE.fullmatch(line) for line in text.split(b"\n")[:-1]]
    return [(match[2], match[3]) for match in found if match]


def test_a_line_has_time_stream_tag_and_content() -> None:
    tagger = LineTagger("stderr", Clock())
    assert tagger.feed(b"some text\n", NOW_NS) == b"2026-09-21T14:13:20.123456789Z stderr F some text\n"


def test_the_time_has_nine_digits_and_moves_on() -> None:
    clock = Clock()
    assert clock.stamp(1_000_000_000) == b"1970-01-01T00:00:01.000000000Z"
    assert clock.stamp(1_000_000_007) == b"1970-01-01T00:00:01.000000007Z"
    assert clock.stamp(2_500_000_000) == b"1970-01-01T00:00:02.500000000Z"


def test_every_line_of_a_block_is_tagged_and_empty_ones_are_lines() -> None:
    assert tagged(b"a\n\nb\n") == [(b"F", b"a"), (b"F", b""), (b"F", b"b")]


def test_a_line_that_is_not_over_waits_for_its_end() -> None:
    assert tagged(b"be", b"gin", end=False) == []
    assert tagged(b"be", b"gin\nnext", end=False) == [(b"F", b"begin")]


def test_text_at_the_end_without_a_line_feed_is_a_part() -> None:
    assert tagged(b"a\nrest") == [(b"F", b"a"), (b"P", b"rest")]


def test_a_line_of_the_greatest_length_is_whole_and_one_byte_more_is_cut() -> None:
    assert tagged(b"12345678\n", most=8) == [(b"F", b"12345678")]
    assert tagged(b"123456789\n", most=8) == [(b"P", b"12345678"), (b"F", b"9")]
    assert tagged(b"1234567812345678\n", most=8) == [(b"P", b"12345678"), (b"F", b"12345678")]


def test_a_full_length_without_more_is_held_back_as_its_end_may_come() -> None:
    assert tagged(b"12345678", end=False, most=8) == []
    assert tagged(b"12345678", b"\n", most=8) == [(b"F", b"12345678")]
    assert tagged(b"12345678", b"9", most=8, end=False) == [(b"P", b"12345678")]


def test_a_carriage_return_before_the_end_goes_and_others_stay() -> None:
    assert tagged(b"a\r\nb\rc\r", b"\nd") == [(b"F", b"a"), (b"F", b"b\rc"), (b"P", b"d")]


def test_content_is_passed_on_as_it_is() -> None:
    raw = bytes(set(range(256)) - {10})
    assert tagged(raw + b"\n") == [(b"F", raw)]


def test_what_is_held_back_is_bounded() -> None:
    tagger = LineTagger("stdout", Clock())
    for _ in range(100):
        tagger.feed(b"x" * 65536, NOW_NS)
    assert len(tagger.end(NOW_NS)) < MAX_LINE_BYTES + 100


def test_lines_do_not_depend_on_where_reads_cut_them() -> None:
    chance = random.Random(7)
    for _ in range(300):
        lines = [bytes(chance.choices(b"ab \t", k=chance.choice((0, 1, 7, 8, 9, 40)))) for _ in range(20)]
        text = b"".join(line + b"\n" for line in lines)
        blocks = []
        while text:
            size = chance.randint(1, 30)
            blocks.append(text[:size])
            text = text[size:]
        joined, whole = b"", []
        for tag, content in tagged(*blocks, most=8):
            assert len(content) <= 8
            joined += content
            if tag == b"F":
                whole.append(joined)
                joined = b""
        assert (whole, joined) == (lines, b"")
