"""CPU inference: environment variables of OpenMP and oneDNN, and glibc's memory."""

import ctypes

CPU_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""Environment variables that are set before torch is imported, unless they are set already.

By default OpenMP threads spin while they wait; with other busy processes on the machine, a step took 50 times as long. By default
oneDNN, and PyTorch's layer above it (the last variable), cache primitives for 1,024 shapes each, which takes 150 and 300 MB when
every window has another length.
"""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""

MAX_FREE_BYTES = 1 << 30
"""Maximum free memory that is kept, bytes: more than the activations of a batch on a CPU."""

MAX_HEAP_BLOCK_BYTES = 32 << 20
"""Blocks of memory up to this size can be kept, bytes; glibc allows no more."""

HEAP_BYTES = 64 << 20
"""Size of a heap of glibc's, bytes."""


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees from now on, to use it again. Without effect where there is no glibc.

    By default glibc returns large blocks to the system, which clears every page before it gives it out again: with the bundled
    model a million page faults per hour of audio. Once in 10,000 messages, protobuf has glibc return what is free all the same.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_FREE_BYTES)
        # In threads, glibc's heaps of 64 MB are returned as a whole unless the next one has this much room.
        libc.mallopt(M_TOP_PAD, HEAP_BYTES)
