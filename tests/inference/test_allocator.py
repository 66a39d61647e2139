from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from pathlib import Path

from inference.allocator import return_large_blocks

if sys.argv[1] == "set":
    assert return_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = libc.memset.argtypes = None


def take(size):
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(block, 1, ctypes.c_size_t(size))
    return block


def written_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


libc.free(take(30_000_000))  # glibc has learnt
before = written_bytes()
large = take(20_000_000)
small = take(64)  # above it, where both are in a heap
libc.free(large)
print(written_bytes() - before)
"""


@pytest.mark.parametrize(("mode", "kept_bytes"), [("left", range(19_000_000, 25_000_000)), ("set", range(2_000_000))])
def test_a_large_block_that_is_freed_goes_back_to_the_system(mode: str, kept_bytes: range) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=60, check=True)
    assert int(run.stdout) in kept_bytes


SMALL_PROGRAM = """
import ctypes, resource, sys

from inference.allocator import return_large_blocks

if sys.argv[1] == "set":
    assert return_large_blocks()
else:
    ctypes.CDLL(None).mallopt(-3, 1024 * 1024)  # the large ones alone
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = libc.memset.argtypes = None
for turn in range(200):
    if turn == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(700_000))) for _ in range(3)]  # a picture, resized and cropped
    for block in blocks:
        libc.memset(block, 1, ctypes.c_size_t(700_000))
    for block in blocks:
        libc.free(block)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""


@pytest.mark.parametrize(("mode", "least", "most"), [("large alone", 300, 600), ("set", 0, 5)])
def test_what_small_pictures_take_is_not_taken_anew_for_each(mode: str, least: float, most: float) -> None:
    run = subprocess.run([sys.executable, "-c", SMALL_PROGRAM, mode], capture_output=True, text=True, timeout=60, check=True)
    assert least <= float(run.stdout) <= most
