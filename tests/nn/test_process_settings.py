"""Settings of the whole process: memory that is kept, threads, deterministic kernels."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from streamcl.nn.process_settings import configure_process

SCRIPT = """
import resource
import numpy as np
from streamcl.nn.process_settings import configure_process

def pages_of_three_batches():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        [np.ones(20_000_000, np.uint8) for _ in range(5)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages_of_three_batches()
given_back = pages_of_three_batches()
configure_process()
pages_of_three_batches()
print(given_back, pages_of_three_batches())
"""


@pytest.fixture
def options(monkeypatch):
    """What the C library is told meanwhile, in an environment that says nothing."""
    told = []
    monkeypatch.setattr("os.environ", {"PATH": "/bin"})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *a: told.append(a)))
    return told


@pytest.mark.long
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_a_batchs_pages_are_there_for_the_next_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={}, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    pages = 3 * 100_000_000 // 4096
    assert kept < pages / 100 < given_back


def test_trimming_and_mapping_are_set(options):
    configure_process()
    assert options == [(-1, 1 << 30), (-3, 32 << 20)]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_an_environment_that_says_how_is_left_to_it(options, monkeypatch, name):
    monkeypatch.setitem(os.environ, name, "glibc.malloc.trim_threshold=1")
    configure_process()
    assert options == []


def test_another_c_library_is_left_alone(options, monkeypatch):
    class WithoutMallopt:
        def __getattr__(self, name):
            looked_for.append(name)
            raise AttributeError(name)

    looked_for = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: WithoutMallopt())
    configure_process()
    assert looked_for == ["mallopt"]


def test_threads_and_deterministic_kernels_are_set_where_they_are_asked_for(options, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append((a, k)))
    configure_process()
    assert asked == []
    configure_process(threads=2, deterministic=True)
    assert asked == [2, ((True,), {"warn_only": True})]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
