"""Records: built by position or name, compared, copied and never changed."""

from __future__ import annotations

from typing import ClassVar

import pytest

from runtime.record import Record, as_dict, replace


class Point(Record):
    LABEL: ClassVar[str] = "point"
    x: int
    y: int = 0


class Point3(Point):
    z: int = 5


def test_fields_are_taken_by_position_and_by_name() -> None:
    assert as_dict(Point(1, y=2)) == {"x": 1, "y": 2}


def test_a_default_fills_what_is_left_out() -> None:
    assert Point(1).y == 0


def test_a_missing_field_without_default_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="x"):
        Point()  # type: ignore[call-arg]


def test_records_are_equal_by_value_within_their_type() -> None:
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    assert Point(1) != Point3(1)
    assert len({Point(1), Point(1), Point(2)}) == 2


def test_a_subclass_adds_its_fields_behind_the_inherited_ones() -> None:
    assert Point3(1, 2, 3).z == 3
    assert Point3.FIELD_NAMES == ("x", "y", "z")


def test_replace_changes_the_copy_only() -> None:
    first = Point(1)
    assert replace(first, y=9) == Point(1, 9)
    assert first.y == 0


def test_there_is_no_room_for_a_misspelt_field() -> None:
    with pytest.raises(AttributeError):
        Point(1).why = 2  # type: ignore[attr-defined]


def test_repr_can_be_read_back() -> None:
    assert repr(Point(1)) == "Point(x=1, y=0)"


def test_a_class_variable_is_no_field() -> None:
    assert Point.FIELD_NAMES == ("x", "y")
    assert Point.LABEL == "point"


def test_records_match_by_position() -> None:
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)
