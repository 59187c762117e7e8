"""Train the bundled model: a FastConformer-TDT of about 1 M parameters that recognises spoken English digits.

    python -m tools.train_bundled_model RECORDINGS OUT.nemo [--steps N] [--workers N] [--seed N]

RECORDINGS is the folder of the Free Spoken Digit Dataset (CC BY-SA 4.0), with files named {digit}_{speaker}_{index}.wav; indexes
10 and up are used for training. espeak-ng and flite must be installed: they synthesise further voices.

The recipe: single digits first, longer strings as the loss falls; an alignment-restricted TDT loss (tools/tdt_loss.py); an
auxiliary frame classifier on the encoder (the position of every word is known, so it learns at once what CTC would have to search
for). The average of the weights over the last steps is saved. Each worker is one process on one core; gradients are averaged.
"""

import argparse
import random
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from testing.augmentation import coloured_noise, cut_like_a_window, degrade
from testing.digit_strings import DIGIT_NAMES, SAMPLE_RATE, Bank, DigitString, Pauses, compose, load_bank, synthesise_bank
from tools.fastconformer_tdt import DIGITS, DURATIONS, config
from tools.tdt_loss import Alignment, tdt_loss

FRAME_SAMPLES = 1280
"""Samples per encoder frame (80 ms)."""

TRAINING_INDEXES = range(10, 50)
"""Indexes of the recordings that are trained on."""

STRING_LENGTHS, BATCH_SIZES = (1, 2, 3, 5, 8, 12), (16, 12, 12, 10, 8, 6)
"""Digits per string at most, and strings per batch, by level of the curriculum."""

HARD_SPEAKERS = ("nicolas", "nicolas")
"""Extra entries in the list that speakers are drawn from: these recordings are cut so short that consonants are missing."""

NEXT_LEVEL_LOSS = 0.45
"""Running loss below which the next level of the curriculum begins."""

AVERAGE_DECAY = 0.998
"""Decay of the moving average of the weights, per step."""


def train_tokenizer(folder: Path, rng: random.Random) -> None:
    """A BPE of 48 pieces of at most three characters, so that a word's first and last token mark its start and end."""
    corpus = folder / "corpus.txt"
    with corpus.open("w") as lines:
        for _ in range(3000):
            words = [rng.choice(DIGIT_NAMES) for _ in range(12)]
            lines.write(" ".join(w.capitalize() + "." if rng.random() < 0.3 else w for w in words) + "\n")
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=48, character_coverage=1.0,
        bos_id=-1, eos_id=-1, max_sentencepiece_length=3, minloglevel=2,
    )  # fmt: skip
    pieces = [line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text().splitlines()]
    (folder / "vocab.txt").write_text("\n".join(f"##{piece}" for piece in pieces))
    corpus.unlink()


def example(bank: Bank, humans: list[str], max_words: int, rng: random.Random, noise: np.random.Generator) -> DigitString:
    """One augmented string, sometimes with long silence, rarely without any speech."""
    if rng.random() < 0.02:
        length = int(rng.uniform(0.3, 3.0) * SAMPLE_RATE)
        level = 0.0 if rng.random() < 0.3 else 10 ** rng.uniform(-4.5, -1)
        return DigitString((level * coloured_noise(length, rng.choice([0.0, 1.0, 2.0]), noise)).astype(np.float32), ())
    speaker = rng.choice(humans if rng.random() < 0.8 else sorted(set(bank) - set(humans)) or humans)
    pauses = Pauses()
    if max_words > 1 and rng.random() < 0.15:
        pauses = replace(pauses, between_sentences_s=(1.0, 5.0))
    if max_words > 1 and rng.random() < 0.15:
        pauses = replace(pauses, lead_s=(0.8, 5.0))
    if max_words > 1 and rng.random() < 0.1:
        pauses = replace(pauses, trail_s=(1.4, 5.0))
    if rng.random() < 0.15:
        pauses = replace(pauses, within_sentence_s=(0.0, 0.06))
    digits = [rng.randrange(10) for _ in range(rng.randint(1, max_words))]
    sentences = (1, 12) if rng.random() < 0.3 else (1, 6)
    string = compose(bank[speaker], digits, rng, pauses, sentence_words=sentences, speed=(0.85, 1.18), gain=(0.35, 1.0))
    if max_words > 1 and rng.random() < 0.3:
        string = cut_like_a_window(string, rng)
    return replace(string, samples=degrade(string.samples, rng, noise))


@dataclass(frozen=True, slots=True)
class Batch:
    audio: Tensor
    """float [batch, samples], padded with zeros."""
    sample_counts: Tensor
    """int [batch]"""
    labels: Tensor
    """int [batch, labels], token ids."""
    label_counts: Tensor
    """int [batch]"""
    bounds: Tensor
    """int [batch, labels, 4], see `align`."""
    frame_classes: Tensor
    """int [batch, frames]: the digit that is spoken there; `len(DIGIT_NAMES)` for none."""


def align(string: DigitString, tokens: list[list[int]], full_stop: int, frames: int) -> list[tuple[int, int, int, int]]:
    """Frame bounds per token: first_frame, last_frame, first_landing, last_landing (see tools.tdt_loss.Alignment)."""
    bounds: list[tuple[int, int, int, int]] = []
    last = frames - 1
    for word, ids in zip(string.words, tokens, strict=True):
        start = min(word.start_sample // FRAME_SAMPLES, last)
        end = min(round(word.end_sample / FRAME_SAMPLES), last)
        spoken = len(ids) - (ids[-1] == full_stop)
        for place in range(spoken):
            first = max(start - 1, 0) if place == 0 else start
            latest = min(start + 1, last) if place == 0 else end
            landing = (end - 1, end + 1) if place == spoken - 1 else (0, end + 1)
            bounds.append((first, max(latest, first), *landing))
        if spoken < len(ids):
            bounds.append((max(end - 1, 0), min(end + 10, last), 0, frames + 4))
    return bounds


def collate(strings: list[DigitString], model: Any) -> Batch:
    """Pad a list of strings into tensors."""
    full_stop = model.tokenizer.token_to_id(".")
    sample_counts = torch.tensor([len(s.samples) for s in strings])
    audio = torch.zeros(len(strings), int(sample_counts.max()))
    tokens = [[model.tokenizer.text_to_ids(word.text) for word in s.words] for s in strings]
    label_counts = torch.tensor([sum(len(ids) for ids in t) for t in tokens])
    labels = torch.zeros(len(strings), max(int(label_counts.max()), 1), dtype=torch.long)
    bounds = torch.zeros(len(strings), labels.shape[1], 4, dtype=torch.long)
    frame_classes = torch.full((len(strings), audio.shape[1] // FRAME_SAMPLES + 2), len(DIGIT_NAMES))
    for row, (string, ids) in enumerate(zip(strings, tokens, strict=True)):
        frames = frame_count(len(string.samples), model)
        audio[row, : len(string.samples)] = torch.from_numpy(string.samples)
        flat = [i for word in ids for i in word]
        if flat:
            labels[row, : len(flat)] = torch.tensor(flat)
            bounds[row, : len(flat)] = torch.tensor(align(string, ids, full_stop, frames))
        for word in string.words:
            frame_classes[row, round(word.start_sample / FRAME_SAMPLES) : round(word.end_sample / FRAME_SAMPLES)] = word.digit
    return Batch(audio, sample_counts, labels, label_counts, bounds, frame_classes)


def frame_count(samples: int, model: Any) -> int:
    """Encoder frames of a recording of that many samples: hop of 160, then three convolutions of stride 2."""
    length = samples // 160
    for _ in range(3):
        length = (length - 1) // 2 + 1
    return length


def losses(model: Any, classifier: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """TDT loss per token and cross-entropy of the frame classifier, both scalars."""
    encoded, frame_counts = model.forward(input_signal=batch.audio, input_signal_length=batch.sample_counts)
    encoded = encoded.transpose(1, 2)
    predicted, _, _ = model.decoder(targets=batch.labels, target_length=batch.label_counts)
    joint = model.joint.joint(encoded, predicted.transpose(1, 2))
    alignment = Alignment(*batch.bounds.unbind(-1))
    per_string = tdt_loss(joint, batch.labels, frame_counts.long(), batch.label_counts, alignment, DURATIONS)
    transducer = (per_string / (batch.label_counts + 1)).mean()
    classes = batch.frame_classes[:, : encoded.shape[1]].clone()
    classes[torch.arange(classes.shape[1])[None] >= frame_counts[:, None]] = -100
    helper = torch.nn.functional.cross_entropy(classifier(encoded[:, : classes.shape[1]]).flatten(0, 1), classes.flatten())
    return transducer, helper


def average_gradients(parameters: list[torch.nn.Parameter], workers: int) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, piece in zip(gradients, torch.split(flat.div_(workers), [g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def train(rank: int, arguments: argparse.Namespace, tokenizer: Path, bank: Bank, humans: list[str]) -> None:
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tokenizer}/rendezvous", rank=rank, world_size=arguments.workers)
    torch.manual_seed(arguments.seed)
    model = EncDecRNNTBPEModel(cfg=OmegaConf.create(config(DIGITS, tokenizer)))
    if arguments.initial:
        # The tokenizer is made anew from the same corpus; the same seed gives the same pieces.
        initial = EncDecRNNTBPEModel.restore_from(str(arguments.initial), map_location="cpu")
        if initial.tokenizer.vocab != model.tokenizer.vocab:
            raise SystemExit("--initial has other tokens: it was trained with another seed")
        model.load_state_dict(initial.state_dict())
    classifier = torch.nn.Linear(DIGITS.width, len(DIGIT_NAMES) + 1)
    rng, noise = random.Random(arguments.seed * 100 + rank), np.random.default_rng(arguments.seed * 100 + rank)
    torch.manual_seed(arguments.seed * 100 + rank)
    parameters = [*model.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=arguments.steps + 1, pct_start=0.1
    )
    average = EncDecRNNTBPEModel(cfg=OmegaConf.create(config(DIGITS, tokenizer))).eval()
    average.load_state_dict(model.state_dict())
    level, running, started = len(STRING_LENGTHS) - 1 if arguments.initial else 0, 5.0, time.monotonic()
    model.train()
    for step in range(arguments.steps):
        strings = [example(bank, humans, STRING_LENGTHS[level], rng, noise) for _ in range(BATCH_SIZES[level])]
        transducer, helper = losses(model, classifier, collate(strings, model))
        optimizer.zero_grad()
        torch.autograd.backward(transducer + helper)
        average_gradients(parameters, arguments.workers)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        shared = transducer.detach().clone()
        dist.all_reduce(shared)
        running = 0.97 * running + 0.03 * shared.item() / arguments.workers
        if running < NEXT_LEVEL_LOSS and level < len(STRING_LENGTHS) - 1:
            level, running = level + 1, 1.0
        if rank == 0:
            decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
            with torch.no_grad():
                for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)
            if step % 50 == 0:
                seconds = time.monotonic() - started
                print(f"{step} level {level} tdt {running:.3f} helper {helper.item():.3f} {seconds:.0f} s", flush=True)
            if step % 500 == 499:
                average.save_to(str(arguments.out))
    if rank == 0:
        average.save_to(str(arguments.out))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initial", type=Path, help="continue training a model of this tool, at full string length")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    bank = load_bank(arguments.recordings, TRAINING_INDEXES)
    humans = [*sorted(bank), *HARD_SPEAKERS]
    bank |= synthesise_bank(4, rng)
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder), rng)
        spawn(train, (arguments, Path(folder), bank, humans), nprocs=arguments.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
