"""Train the RNNT and the CTC head of testing/heads.py on the frozen encoder of the bundled model.

    python -m tools.train_heads RECORDINGS [--strings N] [--passes N] [--learning-rate X] [--seed N] [--resume]

RECORDINGS and the split of them are those of tools/train_bundled_model.py, and so are the strings of digits, without synthesised
voices. They are encoded once and kept in memory, so that training takes minutes on one core. Both losses are restricted to the
known alignment, which makes the times of the tokens true. `--resume` continues from the heads in tests/data/heads/; another seed
makes other strings.
"""

import argparse
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testing.digit_strings import load_bank
from testing.heads import heads_of, load_head, save_head, untrained
from tools.rnnt_loss import rnnt_loss
from tools.tdt_loss import IMPOSSIBLE, Alignment
from tools.train_bundled_model import HARD_SPEAKERS, TRAINING_INDEXES, Batch, collate, example

BATCH_STRINGS, MAX_DIGITS = 16, 12
"""Strings per batch, and digits per string at most."""

CTC_SLACK = 2
"""Frames by which CTC may emit a token before and after the word: it emits one token per frame, and short words have more."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch after the encoder."""

    batch: Batch
    features: Tensor
    """float [batch, width, frames]"""
    frame_counts: Tensor
    """int [batch]"""


def encode(model: Any, recordings: Path, count: int, rng: random.Random) -> list[Encoded]:
    """`count` augmented strings, in batches of similar lengths."""
    bank = load_bank(recordings, TRAINING_INDEXES)
    speakers, noise = [*sorted(bank), *HARD_SPEAKERS], np.random.default_rng(rng.getrandbits(32))
    strings = [example(bank, speakers, MAX_DIGITS, rng, noise) for _ in range(count)]
    strings.sort(key=lambda string: len(string.samples))
    encoded: list[Encoded] = []
    for first in range(0, count, BATCH_STRINGS):
        batch = collate(strings[first : first + BATCH_STRINGS], model)
        with torch.no_grad():
            features, frame_counts = model.forward(input_signal=batch.audio, input_signal_length=batch.sample_counts)
        encoded.append(Encoded(batch, features, frame_counts.long()))
    return encoded


def losses(model: Any, encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Loss per token of the transducer and of the CTC head, both scalars."""
    batch, counts = encoded.batch, encoded.batch.label_counts
    alignment = Alignment(*batch.bounds.unbind(-1))
    predicted, _, _ = model.decoder(targets=batch.labels, target_length=counts)
    joint = model.joint.joint(encoded.features.transpose(1, 2), predicted.transpose(1, 2))
    transducer = rnnt_loss(joint, batch.labels, encoded.frame_counts, counts, alignment)
    scores = model.ctc_decoder(encoder_output=encoded.features)
    scores = scores.masked_fill(forbidden(alignment, batch.labels, counts, scores), IMPOSSIBLE)
    ctc = torch.nn.functional.ctc_loss(
        scores.transpose(0, 1), batch.labels, encoded.frame_counts, counts, blank=scores.shape[-1] - 1, reduction="none"
    )
    # Some words have more tokens than frames.
    ctc = ctc.masked_fill(ctc > -IMPOSSIBLE / 2, 0.0)
    return (transducer / (counts + 1)).mean(), (ctc / (counts + 1)).mean()


def forbidden(alignment: Alignment, labels: Tensor, counts: Tensor, scores: Tensor) -> Tensor:
    """Bool like `scores` [batch, frames, vocabulary + 1]: where no label with that token is spoken. Blanks may be anywhere."""
    frame = torch.arange(scores.shape[1])[None, :, None]
    is_spoken = frame >= alignment.first_frame[:, None] - CTC_SLACK
    is_spoken &= frame <= alignment.last_frame[:, None] + CTC_SLACK
    is_spoken &= torch.arange(labels.shape[1])[None, None] < counts[:, None, None]
    spoken = torch.zeros(scores.shape, dtype=torch.int)
    spoken.scatter_add_(2, labels[:, None].expand(-1, scores.shape[1], -1), is_spoken.int())
    spoken[..., -1] = 1
    return spoken == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--strings", type=int, default=3000)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    started, rng = time.monotonic(), random.Random(arguments.seed)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = untrained("hybrid_rnnt_ctc", Path(folder))
        heads = heads_of(model)
        if arguments.resume:
            for name, head in heads.items():
                head.load_state_dict(load_head(name))
        batches = encode(model, arguments.recordings, arguments.strings, rng)
    print(f"{arguments.strings} strings encoded, {time.monotonic() - started:.0f} s", flush=True)
    parameters = [p for head in heads.values() for p in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=arguments.passes * len(batches), pct_start=0.1
    )
    for head in heads.values():
        head.train()
    for n in range(arguments.passes):
        rng.shuffle(batches)
        totals = torch.zeros(2)
        for encoded in batches:
            pair = losses(model, encoded)
            optimizer.zero_grad()
            torch.autograd.backward(list(pair))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            totals += torch.stack([loss.detach() for loss in pair]) / len(batches)
        for name, head in heads.items():
            save_head(name, head)
        print(f"pass {n}: rnnt {totals[0]:.3f} ctc {totals[1]:.3f}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
