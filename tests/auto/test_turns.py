"""Turns in a schedule: written and read, and the share that is done grows evenly between them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.auto.turns import format_turns, parse_turns, position


@st.composite
def all_turns(draw):
    turns, step = [(0, draw(st.integers(1, 1000)))], 0
    for _ in range(draw(st.integers(0, 5))):
        if turns[-1][1] < 2:
            break
        step = turns[-1][0] + draw(st.integers(1, turns[-1][1] - 1))
        turns.append((step, draw(st.integers(1, 1000))))
    return turns


@given(all_turns())
def test_what_is_written_is_read(turns):
    assert parse_turns(format_turns(turns)) == turns


@pytest.mark.parametrize("text", ["1:5", "0", "0:0", "0:5,5:3", "0:5,0:3", "0:5,2:3,1:3", "a:b", "0:5:6", "0:5,,2:-1"])
def test_what_is_no_course_of_a_run_is_refused(text):
    with pytest.raises(ValueError):
        parse_turns(text)


def test_without_turns_there_are_none():
    assert parse_turns(None) == []


@given(st.integers(1, 10**6), st.data())
def test_with_one_a_step_is_where_it_is(steps, data):
    step = data.draw(st.integers(0, steps))
    assert position(step, [(0, steps)]) == step


@given(all_turns())
def test_the_way_is_continuous_and_ends_at_the_end(turns):
    """In each stretch even steps, whose slope is what is left over how many are left."""
    planned, last = turns[0][1], sum(turns[-1])
    places = [position(step, turns) for step in range(last + 1)]
    assert places[0] == 0
    assert places[-1] == pytest.approx(planned)
    assert all(a < b for a, b in itertools.pairwise(places))
    for (start, left), end in zip(turns, [*(step for step, _ in turns[1:]), last], strict=True):
        slope = (planned - places[start]) / left
        for step in range(start, end):
            assert places[step + 1] - places[step] == pytest.approx(slope, rel=1e-6)


def test_a_turn_changes_nothing_before_it():
    before, after = [(0, 100)], [(0, 100), (60, 10)]
    assert [position(s, before) for s in range(61)] == [position(s, after) for s in range(61)]
    assert position(65, after) == 80
