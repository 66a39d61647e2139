"""Who a client of the soak is."""

from __future__ import annotations


class Credentials:
    """A client's id and secret; an operator may give it another secret at any time."""

    def __init__(self, client_id: str, secret: str) -> None:
        self.client_id = client_id
        self.secret = secret
