"""Who is next, and who gives way."""

from __future__ import annotations

import pytest

from inference.fair_lines import FairLines


def lines_of(*items: tuple[str, int]) -> FairLines[int]:
    lines: FairLines[int] = FairLines()
    for client, item in items:
        assert lines.put(client, item, full=False) is None
    return lines


def drawn(lines: FairLines[int]) -> list[int]:
    return [lines.take() for _ in range(len(lines))]


def test_clients_take_turns() -> None:
    lines = lines_of(("flood", 1), ("flood", 2), ("flood", 3), ("single", 4), ("other", 5))
    assert (lines.ahead_of("flood"), lines.ahead_of("single"), lines.ahead_of("nobody")) == (5, 4, 3)
    assert sorted(lines) == [1, 2, 3, 4, 5]
    assert drawn(lines) == [1, 4, 5, 2, 3]
    with pytest.raises(KeyError):
        lines.take()


def test_the_longest_line_gives_up_its_newest_for_a_shorter_one_and_for_no_other() -> None:
    lines = lines_of(("flood", 1), ("flood", 2), ("flood", 3))
    assert lines.put("flood", 4, full=True) == 4
    assert lines.put("single", 5, full=True) == 3
    assert lines.put("single", 6, full=True) == 6, "two against one would be two against one again"
    assert lines.put("other", 7, full=True) == 2
    assert drawn(lines) == [1, 5, 7]


def test_what_may_displace_nothing_gives_up_itself_and_waits_like_any_other_where_there_is_room() -> None:
    lines = lines_of(("flood", 1), ("flood", 2), ("flood", 3))
    assert lines.put("single", 4, full=True, may_displace=False) == 4
    assert lines.put("single", 5, full=False, may_displace=False) is None
    assert drawn(lines) == [1, 5, 2, 3]


def test_where_nobody_waits_there_is_nobody_to_give_way() -> None:
    assert lines_of().put("single", 1, full=True) == 1


def test_one_that_leaves_the_line_costs_nobody_a_turn() -> None:
    lines = lines_of(("a", 1), ("b", 2), ("a", 3))
    lines.discard("a", 1)
    lines.discard("a", 1)
    lines.discard("nobody", 1)
    assert drawn(lines) == [3, 2]
    lines.clear()
    assert len(lines) == 0
