"""What a long-lived process tells Python's garbage collector when it is ready to serve."""

from __future__ import annotations

import gc


def keep_what_exists() -> None:
    """Have the collector never look again at what exists now: modules, routes, the model. All of it stays until the process ends.

    A full collection visits every object, and holds the interpreter's lock for as long: some 100 ms in an API worker, about once a second
    under load, for nothing.
    """
    gc.collect()  # what is garbage already would be kept, too
    gc.freeze()
