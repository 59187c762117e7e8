"""Audio that a process shares with others on its node: where it is, who can read it, how long it stays."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serve_app.cluster import shared_audio
from serve_app.cluster.shared_audio import (
    MAX_KEPT_BYTES,
    MAX_KEPT_SLOTS,
    SLOT_BYTES,
    Place,
    SentAudio,
    SharedAudio,
    received,
)
from serve_app.errors import AudioUnreachable
from serve_app.window import Samples, new_samples

WINDOW_SAMPLES = 480_000
READ = """
import pickle, sys
from serve_app.cluster.shared_audio import SharedAudio, received
sys.stdout.buffer.write(received(pickle.load(sys.stdin.buffer), SharedAudio().new_samples).tobytes())
"""
"""What a replica does with an argument of a call."""


def filled(memory: SharedAudio, length: int = WINDOW_SAMPLES, seed: int = 0) -> Samples:
    samples = memory.new_samples(length)
    samples[:] = np.random.default_rng(seed).integers(-32768, 32767, length)
    return samples


def place_of(memory: SharedAudio, samples: Samples) -> Place:
    place = memory.place(samples)
    assert place is not None
    return place


def kept_bytes(memory: SharedAudio) -> int:
    samples = memory.new_samples(1)
    return 512 * os.stat(place_of(memory, samples).path).st_blocks


@pytest.mark.parametrize("part", [slice(None), slice(1_280, 20_000), slice(-1, None)])
def test_another_process_reads_the_same_audio(part: slice) -> None:
    memory = SharedAudio()
    samples = filled(memory)[part]
    audio = SentAudio(samples, memory.place(samples))
    audio.is_near = True
    message = pickle.dumps(audio)
    assert len(message) < 300
    replica = subprocess.run([sys.executable, "-c", READ], input=message, capture_output=True, check=True)
    assert np.array_equal(np.frombuffer(replica.stdout, np.int16), samples)


@pytest.mark.parametrize(("is_near", "is_shared"), [(False, True), (True, False), (False, False)])
def test_what_cannot_be_read_where_it_is_has_its_audio_with_it(is_near: bool, is_shared: bool) -> None:
    memory = SharedAudio()
    samples = filled(memory)
    audio = SentAudio(samples, memory.place(samples) if is_shared else None)
    audio.is_near = is_near
    assert len(audio) == WINDOW_SAMPLES
    assert np.array_equal(received(pickle.loads(pickle.dumps(audio)), new_samples), samples)


def test_the_same_audio_can_be_sent_again_to_another_node() -> None:
    memory = SharedAudio()
    samples = filled(memory)
    audio = SentAudio(samples, memory.place(samples))
    audio.is_near = True
    assert isinstance(pickle.loads(pickle.dumps(audio)), Place)
    audio.is_near = False
    assert np.array_equal(pickle.loads(pickle.dumps(audio)), samples)


def test_a_slot_is_used_again_only_when_no_part_of_its_array_is_left() -> None:
    memory = SharedAudio()
    first = filled(memory)
    place, part = place_of(memory, first), first[100:200]
    del first
    second = memory.new_samples(WINDOW_SAMPLES)
    assert place_of(memory, second).offset_bytes != place.offset_bytes
    del part
    assert place_of(memory, memory.new_samples(5)).offset_bytes == place.offset_bytes


def test_free_slots_keep_a_bounded_amount_of_memory() -> None:
    memory = SharedAudio()
    arrays = [filled(memory) for _ in range(MAX_KEPT_SLOTS + 10)]
    assert kept_bytes(memory) > len(arrays) * 2 * WINDOW_SAMPLES
    del arrays
    assert kept_bytes(memory) <= MAX_KEPT_SLOTS * MAX_KEPT_BYTES
    memory = SharedAudio()
    long = filled(memory, MAX_KEPT_BYTES)
    del long
    assert kept_bytes(memory) < MAX_KEPT_BYTES


@pytest.mark.parametrize("length", [0, SLOT_BYTES // 2 + 1])
def test_an_array_that_fits_into_no_slot_is_outside(length: int) -> None:
    memory = SharedAudio()
    samples = memory.new_samples(length)
    assert samples.dtype == np.int16
    assert len(samples) == length
    assert memory.place(samples) is None


def test_arrays_beyond_the_slots_are_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_audio, "SLOTS", 3)
    memory = SharedAudio()
    arrays = [filled(memory, 1_000, seed) for seed in range(5)]
    assert [memory.place(samples) is None for samples in arrays] == [False] * 3 + [True] * 2
    assert all(np.array_equal(samples, filled(memory, 1_000, seed)) for seed, samples in enumerate(arrays))


def test_other_arrays_have_no_place() -> None:
    memory, other = SharedAudio(), SharedAudio()
    assert memory.place(np.ones(10, np.int16)) is None
    assert memory.place(filled(other)) is None
    assert memory.place(filled(memory)[::2]) is None
    assert memory.place(filled(memory).view(np.int32)) is None


def test_a_copy_is_in_a_slot_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_audio, "SLOTS", 1)
    memory, samples = SharedAudio(), np.arange(1_000, dtype=np.int16)
    copy = memory.copied(samples)
    assert copy.tolist() == samples.tolist()
    assert memory.place(copy) is not None
    assert memory.copied(samples) is samples


def test_without_memfd_arrays_are_ordinary_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError

    for change in (("sys.platform", "darwin"), ("os.memfd_create", refused)):
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            memory = SharedAudio()
            samples = filled(memory)
            assert memory.place(samples) is None


@pytest.mark.parametrize("what", ["process", "file", "length"])
def test_audio_that_is_not_there_is_unreachable(what: str, tmp_path: Path) -> None:
    memory = SharedAudio()
    place = place_of(memory, samples := filled(memory))
    other = tmp_path / "other"
    other.write_bytes(samples.tobytes())
    wrong = {
        "process": place._replace(path="/proc/0/fd/3"),
        "file": place._replace(path=str(other)),
        "length": place._replace(offset_bytes=shared_audio.SLOTS * SLOT_BYTES - 10),
    }
    with pytest.raises(AudioUnreachable):
        received(wrong[what], new_samples)
