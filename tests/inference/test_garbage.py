from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, sys, weakref

from inference.garbage import keep_what_exists

class Cycle:
    def __init__(self):
        self.me = self

gc.disable()
garbage, kept = weakref.ref(Cycle()), Cycle()
keep_what_exists()
assert garbage() is None, "what was garbage is gone"
seen = {id(one) for one in gc.get_objects()}
assert id(kept) not in seen and id(sys.modules) not in seen, "what was there is not looked at"
later = weakref.ref(Cycle())
gc.collect()
assert later() is None, "what becomes garbage afterwards is found"
"""


def test_the_collector_leaves_alone_what_was_there_and_finds_what_comes_later() -> None:
    # In a process of its own: it cannot be taken back.
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
