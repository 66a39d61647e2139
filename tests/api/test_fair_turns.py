"""Who gets the next place."""

from __future__ import annotations

import asyncio

import pytest

from api.fair_turns import FairTurns, NoTurn


async def wait_in_line(turns: FairTurns, *clients: str) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(turns.take(client)) for client in clients]
    await asyncio.sleep(0)
    return tasks


async def served(turns: FairTurns, tasks: list[asyncio.Task[None]]) -> list[int]:
    """The order in which they get the one place, each giving it back at once."""
    order: list[int] = []
    for number, task in enumerate(tasks):
        task.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]  # a lambda's default
    for _ in tasks:
        turns.give_back()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return order


async def test_clients_take_turns() -> None:
    turns = FairTurns(1, 100)
    await turns.take("flood")
    tasks = await wait_in_line(turns, "flood", "flood", "flood", "single", "other")
    assert await served(turns, tasks) == [0, 3, 4, 1, 2]


async def test_a_place_is_free_at_once_when_nobody_waits() -> None:
    turns = FairTurns(2, 0)
    await turns.take("a")
    await turns.take("a")
    with pytest.raises(NoTurn):
        await turns.take("b")
    turns.give_back()
    await turns.take("b")


async def test_the_longest_line_gives_up_its_newest_for_a_shorter_one_and_for_no_other() -> None:
    turns = FairTurns(1, 3)
    await turns.take("flood")
    tasks = await wait_in_line(turns, "flood", "flood", "flood", "single", "flood")
    await asyncio.sleep(0)  # who gave way hears of it
    assert [isinstance(task.exception(), NoTurn) if task.done() else None for task in tasks] == [None, None, True, None, True]
    assert turns.waiting == 3
    assert await served(turns, [tasks[0], tasks[1], tasks[3]]) == [0, 2, 1]


async def test_one_that_leaves_the_line_or_leaves_as_its_turn_comes_costs_nobody_a_place() -> None:
    turns = FairTurns(1, 10)
    await turns.take("a")
    first, second, third = await wait_in_line(turns, "a", "b", "a")
    first.cancel()
    await asyncio.wait({first})
    assert turns.waiting == 2
    turns.give_back()
    second.cancel()  # it has the place, and does not know yet
    await asyncio.wait({second})
    await asyncio.wait_for(third, 10)
    turns.give_back()
    await asyncio.wait_for(turns.take("c"), 10)
    assert turns.waiting == 0
