"""The settings that streamcl changes for a whole process; no other module changes any."""

from __future__ import annotations

import ctypes
import os

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT = 1 << 30  # bytes; each batch of a ViT-S in two views allocates 70 MB, in pieces of up to 10 MB
_APART = 32 << 20
"""Bytes from which an array has pages of its own: glibc's largest threshold. A larger array in the heap might
leave a hole that is too small, by a few bytes, for the next one of its size."""


def configure_process(*, threads: int | None = None, deterministic: bool = False) -> None:
    """Have glibc keep freed memory (`_keep_freed_memory`), and set these for the whole process:

    threads: torch's threads for one operation; None leaves the number as it is.
    deterministic: torch takes deterministic kernels and warns where it has none, and the environment gets
        CUBLAS_WORKSPACE_CONFIG, which cuBLAS reads at its first product. For ranks on GPUs, each of which
        repeats the same computation on gathered numbers and must get the same bits.
    """
    _keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _keep_freed_memory() -> None:
    """Have the C library keep freed memory, up to 1 GiB at the heap's end, for the rest of the process.

    By default glibc returns a batch's memory to the system and gets the next one's as new pages, which the
    kernel clears first: reading 64 images of 70 pixels in two views, ViT-S, meets 17,000 of them and took
    1.02 to 1.3 times as long on a Xeon, the more the busier its host was.
    Nothing changes with another C library, nor where the environment configures allocation.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _APART)
