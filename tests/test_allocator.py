"""Freed memory stays with the process."""

import ctypes
import os
import subprocess
import sys

import pytest

from streamcl import allocator

SCRIPT = """
import resource
import torch
from streamcl.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{keep}
def batch():
    [torch.ones(20_000_000, dtype=torch.uint8) for _ in range(5)]

for _ in range(3):
    batch()
before = faults()
for _ in range(3):
    batch()
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
@pytest.mark.parametrize(
    ("keep", "environment", "kept"),
    [
        ("", {}, False),
        ("keep_freed_memory()", {}, True),
        ("keep_freed_memory()", {"MALLOC_TRIM_THRESHOLD_": "1"}, False),
        ("keep_freed_memory()", {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}, False),
    ],
)
def test_pages_are_asked_for_once_unless_the_environment_says_otherwise(keep, environment, kept):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(keep=keep)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    pages = 3 * 100_000_000 // 4096
    assert (int(done.stdout) < pages / 4) == kept


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    allocator.keep_freed_memory()
