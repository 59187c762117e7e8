"""What the benchmark of the front end measures with."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.engine.simulated import SimulatedEngine
from serve_app.settings import SimulationSettings
from serve_app.window import SAMPLE_RATE
from testing.cpu_time import KINDS, Key, Snapshot, snapshot, spent
from testing.media import alignment
from testing.speech_noise import PART_S, SPEECH_FORMATS, parts, write

SECONDS = PART_S + 5.0
MIN_WORDS_PER_S = 0.8


@pytest.mark.parametrize("name", SPEECH_FORMATS)
def test_a_file_has_its_format_and_the_noise_in_full(tmp_path: Path, name: str) -> None:
    path, target = tmp_path / f"noise.{name}", SPEECH_FORMATS[name]
    write(path, target, SECONDS)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.channels) == (target.rate, av.AudioLayout(target.layout).nb_channels)
    with path.open("rb") as file:
        decoded = np.concatenate(list(AudioFile(file).blocks()))
    both = np.concatenate(list(parts(SECONDS)), axis=1)
    assert len(decoded) == pytest.approx(SECONDS * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert alignment(decoded, both.mean(axis=0) if target.layout == "stereo" else both[0])[1] > 0.95
    words = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0)).transcribe([decoded])[0]
    assert len(words) > MIN_WORDS_PER_S * SECONDS


def test_the_noise_has_pauses_but_no_digital_silence() -> None:
    first = np.concatenate(list(parts(SECONDS)), axis=1)[0]
    levels = np.sqrt(np.square(first[: len(first) // 800 * 800].reshape(-1, 800)).mean(axis=1))
    assert 0.05 < np.mean(levels < 0.01) < 0.3
    assert levels.min() > 1e-4


def test_cpu_time_of_a_decoder_that_ends_is_counted_once() -> None:
    ingress, ended, lasting, new = (Key(process_id, 0.0) for process_id in range(4))
    below = Key(ingress.process_id, 0.0, is_ended_below=True)
    before: Snapshot = {
        ingress: ("ingress", 10.0),
        below: ("decoder", 5.0),
        ended: ("decoder", 3.0),
        lasting: ("decoder", 1.0),
    }
    after: Snapshot = {
        ingress: ("ingress", 12.0),
        below: ("decoder", 12.0),
        lasting: ("decoder", 1.5),
        new: ("decoder", 0.25),
    }
    # The decoder that ended spent 4 more, to 7, which are now among those below the ingress.
    assert spent(before, after) == dict.fromkeys(KINDS, 0.0) | {"ingress": 2.0, "decoder": 4.75}


def test_cpu_time_is_this_process_s_too() -> None:
    before = snapshot(os.getpid())
    sum(range(5_000_000))
    assert spent(before, snapshot(os.getpid()))["client"] > 0
