from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from pathlib import Path

from inference import allocator

if sys.argv[1] != "left":
    assert getattr(allocator, sys.argv[1])()
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


@pytest.mark.parametrize(
    ("mode", "kept_bytes"),
    [("left", range(19_000_000, 25_000_000)), ("return_large_blocks", range(2_000_000)), ("keep_a_picture", range(2_000_000))],
)
def test_a_large_block_that_is_freed_goes_back_to_the_system(mode: str, kept_bytes: range) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=60, check=True)
    assert int(run.stdout) in kept_bytes


AGAIN_PROGRAM = """
import ctypes, resource, sys

from inference import allocator

if sys.argv[1] == "large alone":
    ctypes.CDLL(None).mallopt(-3, 1024 * 1024)
else:
    assert getattr(allocator, sys.argv[1])()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = libc.memset.argtypes = None
size = ctypes.c_size_t(int(sys.argv[2]))
for turn in range(200):
    if turn == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(size)) for _ in range(3)]  # a picture, resized and cropped
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""
SMALL, PHONE = "700000", "3600000"
"""The bytes that a picture of 500 x 334 pixels takes, and one of 12 megapixels that was decoded at a quarter of its size."""


@pytest.mark.parametrize(
    ("mode", "size", "least", "most"),
    [
        ("large alone", SMALL, 300, 600),
        ("return_large_blocks", SMALL, 0, 5),
        ("return_large_blocks", PHONE, 2000, 3000),
        ("keep_a_picture", SMALL, 0, 5),
        ("keep_a_picture", PHONE, 0, 5),
    ],
)
def test_what_pictures_take_is_not_taken_anew_for_each(mode: str, size: str, least: float, most: float) -> None:
    run = subprocess.run([sys.executable, "-c", AGAIN_PROGRAM, mode, size], capture_output=True, text=True, timeout=60, check=True)
    assert least <= float(run.stdout) <= most
