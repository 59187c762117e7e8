"""The program of a decoder process: what it imports, what it knows, what it may do, and when it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from serve_app.decoders import messages, shared_memory
from serve_app.decoders.messages import Failed, Message, Open, Ready, WindowDone
from serve_app.decoders.pool import DecoderPool
from serve_app.decoders.shared_memory import MAX_SAMPLES, SLOTS, SharedMemory
from serve_app.window import FRAME_SAMPLES, new_samples
from testing.paths import ROOT

START_MB = 80


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_it_imports_little() -> None:
    imported = json.loads(run("import sys, json, serve_app.decoders.worker; print(json.dumps(list(sys.modules)))").stdout)
    assert not {"ray", "torch", "nemo", "fastapi", "starlette", "pydantic", "soxr"} & set(imported)


def test_it_has_imported_all_of_pyav_before_it_sees_a_file() -> None:
    result = run("""
import importlib.util, pkgutil, sys
from serve_app.decoders import worker
worker._warm_up()
modules = pkgutil.walk_packages(importlib.util.find_spec("av").submodule_search_locations, "av.")
print({module.name for module in modules} - set(sys.modules))
""")
    assert result.stdout == "{'av.__main__'}\n", result.stderr


def test_it_is_small_and_knows_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAKEET_AUTH__KEYS", '["secret"]')
    pool = DecoderPool(1)
    (process,) = (psutil.Process(pid) for pid in pool.pids)
    while process.num_ctx_switches().voluntary < 1 or process.memory_info().rss < 30e6:
        time.sleep(0.01)
    assert "secret" not in str(process.environ())
    assert process.memory_info().rss < START_MB * 1e6
    pool.close()


def test_a_script_beside_it_takes_no_module_s_place(tmp_path: Path) -> None:
    """Otherwise such a script could start decoder processes without end."""
    script = tmp_path / "queue.py"
    script.write_text(f"""
import sys
sys.path[0] = {str(ROOT)!r}
import asyncio, io
from serve_app.decoders.pool import DecoderPool
from testing import media
sys.path.insert(0, {str(tmp_path)!r})

async def count():
    pool = DecoderPool(1)
    return len([window async for window in pool.open(io.BytesIO(media.wav(media.tone(1)))).windows(4, 1.5)])

print(asyncio.run(count()))
""")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "1\n", result.stderr


def test_it_ends_with_its_ingress(tmp_path: Path) -> None:
    code = """
import os
from serve_app.decoders.pool import DecoderPool
pool = DecoderPool(2)
print(*pool.pids, flush=True)
os._exit(1)
"""
    result = run(code)
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    assert "Traceback" not in result.stderr
    deadline_s = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_file_can_open_neither_files_nor_sockets() -> None:
    result = run("""
import os, socket
from serve_app.decoders.sandbox import Descriptors
ours, theirs = socket.socketpair()
file = os.open("README.md", os.O_RDONLY)
socket.send_fds(ours, [b"-"], [file])
descriptors = Descriptors()
def may_open():
    opened = []
    for open_one in (lambda: os.open("README.md", os.O_RDONLY), lambda: socket.socket().detach(), lambda: os.dup(0)):
        try:
            opened.append(open_one())
        except OSError as error:
            assert error.errno == 24
    return bool(opened)
print(may_open())
received = descriptors.receive(theirs)
print(os.pread(received, 2, 0), may_open())
descriptors.close(received)
print(may_open())
""")
    assert result.stdout.split("\n")[:3] == ["False", "b'# ' False", "False"], result.stderr


def test_memory_is_limited() -> None:
    result = run("""
from serve_app.decoders.sandbox import FREE_MEMORY_BYTES, Memory
memory = Memory()
kept = bytearray(FREE_MEMORY_BYTES // 2)
try:
    bytearray(FREE_MEMORY_BYTES)
except MemoryError:
    memory.add(FREE_MEMORY_BYTES)
    print(len(bytearray(FREE_MEMORY_BYTES)) > 0)
""")
    assert result.stdout == "True\n", result.stderr


@pytest.mark.slow
def test_processor_time_is_limited_by_bytes_and_decoded_audio() -> None:
    code = """
import time
from serve_app.decoders import sandbox
sandbox.forbid_core_dumps()
sandbox.START_CPU_S = 0.2
used = sandbox.ProcessorTime()
used.begin({read_bytes}, {decoded_s})
while time.process_time() < 1.9:
    pass
print("done")
"""
    killed = run(code.format(read_bytes=0, decoded_s=0))
    assert (killed.returncode, killed.stdout) == (-signal.SIGXCPU, "")
    assert run(code.format(read_bytes=15_000_000, decoded_s=0)).stdout == "done\n"
    assert run(code.format(read_bytes=0, decoded_s=30)).stdout == "done\n"


@pytest.mark.parametrize(
    "message",
    [
        Ready(),
        Open(1, 32.0, 2.0, None, ["wav"], None, False, 3),
        WindowDone(1, 0, 2, 3, 4, None),
        Failed(1, 'line\n"é"', "file", True),
    ],
)
def test_messages_survive_the_way(message: Message) -> None:
    line = messages.encode(message)
    assert line.count(b"\n") == 1
    assert messages.decode(line) == message


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b'["Open"]\n', b'["Shut", 1]\n', b"{}\n", b'[["Ready"]]\n', b"\xff\n"])
def test_what_is_no_message_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any of them
        messages.decode(line)


@pytest.mark.parametrize("has_memfd", [True, False])
def test_shared_memory(has_memfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = shared_memory.create()
    ours, theirs = SharedMemory(descriptor), SharedMemory(descriptor)
    os.close(descriptor)
    theirs.job = 7
    assert ours.job == 7
    for slot, length in [(0, 1), (SLOTS - 1, MAX_SAMPLES)]:
        samples = np.random.default_rng(slot).integers(-32768, 32767, length, dtype=np.int16)
        levels = np.arange(length // FRAME_SAMPLES, dtype=np.float32)
        theirs.write(slot, samples, levels)
        received_samples, received_levels = ours.read(slot, length, new_samples)
        assert np.array_equal(received_samples, samples)
        assert np.array_equal(received_levels, levels)
    for slot, length in [(SLOTS, 1), (-1, 1), (0, 0), (0, MAX_SAMPLES + 1)]:
        with pytest.raises(ValueError, match="outside"):
            ours.read(slot, length, new_samples)
