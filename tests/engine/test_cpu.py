"""Memory of a process that recognises windows of ever different lengths on a CPU."""

import ctypes
import os
import subprocess
import sys

import pytest

from serve_app.engine.cpu import CPU_ENVIRONMENT
from testing.paths import ROOT

SHAPES = 500
MAX_GROWTH_MIB = 75.0
"""Half of what the default caches hold."""

PROGRAM = f"""
import ctypes
import torch
from torch import nn
from serve_app.engine.lean_modules import PackedLinear

class Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo2

def used():
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd

torch.set_num_threads(1)
layer = PackedLinear(nn.Linear(256, 1024))
with torch.inference_mode():
    layer(torch.zeros(1, 256))
    before = used()
    for rows in range(2, 2 + {SHAPES}):
        layer(torch.zeros(rows, 256))
    print((used() - before) / 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc from 2.33 on tells what is in use")
def test_caches_by_shape_are_bounded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **CPU_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < MAX_GROWTH_MIB
