"""What waits for something scarce: a line for each client, drawn from clients in turn. The rule of all our queues stands here once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class FairLines(Generic[Item]):
    """One client's flood costs another's single item one place, not the whole flood. Items are unique. Not safe for threads."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, dict[Item, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """How many items wait."""
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """All of them, client by client."""
        return (item for line in self._lines.values() for item in line)

    def put(self, client: str, item: Item, *, full: bool, may_displace: bool = True) -> Item | None:
        """Add one item to the end of its client's line.

        Args:
            client: whose it is.
            item: what waits.
            full: there is no room for one more. The client with the longest line then gives up its newest item for one of a client with a
                shorter line: a flood fills what there is with its own items, and then with no more of them.
            may_displace: it may take the place of another one like that.

        Returns:
            What there is no place for: nothing, the item that was given up, or `item` itself.
        """
        line = self._lines.get(client, {})
        given_up: Item | None = None
        if full and not may_displace:
            return item
        if full:
            other, longest = max(self._lines.items(), key=lambda one: len(one[1]), default=(client, line))
            if len(longest) <= len(line) + 1:
                return item
            given_up = next(reversed(longest))
            self.discard(other, given_up)
        line[item] = None
        self._lines.setdefault(client, line)
        self._count += 1
        return given_up

    def take(self) -> Item:
        """The oldest item of the client whose turn it is, which then goes to the back of the round.

        Raises:
            KeyError: nothing waits.
        """
        client, line = self._lines.popitem(last=False)
        item = next(iter(line))
        del line[item]
        self._count -= 1
        if line:
            self._lines[client] = line
        return item

    def discard(self, client: str, item: Item) -> None:
        """Free the place of an item that need not wait any longer; nothing happens when it does not wait."""
        line = self._lines.get(client, {})
        if item not in line:
            return
        del line[item]
        self._count -= 1
        if not line:
            del self._lines[client]

    def ahead_of(self, client: str) -> int:
        """How many items would be drawn before one that this client put in now; one too many for each client that has had its turn."""
        own = len(self._lines.get(client, ()))
        return own + sum(min(len(line), own + 1) for other, line in self._lines.items() if other != client)

    def clear(self) -> None:
        """Let everybody go."""
        self._lines.clear()
        self._count = 0
