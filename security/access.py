"""What a path asks of its caller. Default-deny: a path that is not in the table needs a token like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SCOPES: Final = ("predict", "metrics", "introspect")
"""Every scope there is, in the order in which they are shown."""

PUBLIC: Final = ""
"""The access of a path that anyone may call, and of the OAuth endpoints, which authenticate their clients themselves."""

AccessTable = Mapping[str, str]
"""Exact path → the scope it needs, or `PUBLIC`."""
