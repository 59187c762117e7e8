"""Train the bundled diarizer: a streaming Sortformer of 0.9 M parameters that tells up to four speakers apart.

    python -m tools.train_bundled_diarizer RECORDINGS OUT.nemo [--steps N] [--without NAME ...] [--initial MODEL.nemo]

RECORDINGS is the folder of the Free Spoken Digit Dataset (CC BY-SA 4.0), with files named {digit}_{speaker}_{index}.wav; indexes
10 and up are used for training. espeak-ng and flite must be installed: they synthesise further voices. Changes of speed, which
shift pitch and formants, make further ones of all of them.

The recipe: conversations get longer and have more people stage by stage, at last with the speaker cache as in streaming. The loss
is binary cross-entropy, half with the speakers in the order of their arrival, half with the best permutation. Two heads that are
not kept help the encoder: one names the voice of each frame, the other the speaker's column. The average of the weights over the
last steps is saved.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from testing.augmentation import degrade
from testing.conversations import FRAME_SAMPLES, Conversation, Style, Voice, converse
from testing.digit_strings import SAMPLE_RATE, Bank, load_bank, synthesise_bank
from tools.diarization_loss import diarization_loss, right_frames
from tools.sortformer import MAX_SPEAKERS, VOICES, config

TRAINING_INDEXES = range(10, 50)
"""Indexes of the recordings that are trained on."""

AVERAGE_DECAY = 0.995
"""Decay of the moving average of the weights, per step."""

SPEEDS = (0.78, 1.28)
"""Range of the speeds that make other voices."""

MIN_SPEED_RATIO = 1.2
"""Two voices made of one person are this far apart in a conversation, so that they are two people to the ear."""

SPEED_JITTER = 0.03
"""A voice changes its speed by up to this fraction from turn to turn, as people do."""

CLEAN_SHARE = 0.5
"""Conversations without noise, echo and telephone."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of the curriculum. It ends when the share of frames with the right speaker, of those with one, reaches `enough`."""

    frames: int
    voices: tuple[int, ...]
    """Drawn from these."""
    batch: int
    enough: float
    introduction_s: tuple[float, float] | None = None
    introduced: float = 1.0
    """Share of conversations that begin with introductions."""
    streaming: bool = False


STAGES = (
    Stage(frames=125, voices=(2, 3), batch=12, enough=0.85, introduction_s=(2.0, 2.0)),
    # Few conversations of few people have a fourth speaker: without this stage the model never used its fourth column.
    Stage(frames=150, voices=(3, 4, 4, 4), batch=8, enough=0.86, introduction_s=(1.5, 2.5)),
    Stage(frames=250, voices=(2, 3, 4, 4, 4), batch=6, enough=0.86, introduction_s=(1.0, 3.0), introduced=0.7),
    Stage(frames=500, voices=(2, 3, 4, 4, 4), batch=4, enough=2.0, introduction_s=(1.0, 3.0), introduced=0.5, streaming=True),
)


@dataclass(frozen=True, slots=True)
class Batch:
    audio: Tensor
    """float [batch, samples]"""
    activity: Tensor
    """float [batch, frames, MAX_SPEAKERS], in the order of arrival."""
    voice_classes: Tensor
    """int [batch, frames]: the voice that speaks alone; 0 for silence, -100 for several."""


class Material:
    """Draws conversations from a bank."""

    def __init__(self, bank: Bank, people: list[str], seed: int) -> None:
        self.bank, self.people, self.synthetic = bank, people, sorted(set(bank) - set(people))
        self.rng, self.noise = random.Random(seed), np.random.default_rng(seed)
        names = sorted(bank)
        self.classes = {(name, band): 1 + 3 * place + band for place, name in enumerate(names) for band in range(3)}

    def voices(self, count: int) -> list[Voice]:
        rng = self.rng
        # Conversations of the people as they are, of people at other speeds, and of all voices.
        kind = rng.choices(("people", "shifted", "all"), (0.65, 0.1, 0.25))[0]
        chosen: list[Voice] = []
        while len(chosen) < count:
            pool = self.people if kind != "all" or rng.random() < 0.4 else self.synthetic
            speed = 1.0 if kind == "people" else float(np.exp(rng.uniform(*np.log(SPEEDS))))
            voice = Voice(rng.choice(pool), speed)
            if all(v.name != voice.name or max(v.speed / speed, speed / v.speed) >= MIN_SPEED_RATIO for v in chosen):
                chosen.append(voice)
            elif kind == "people" and len({v.name for v in chosen}) == len(self.people):
                kind = "all"
        return chosen

    def conversation(self, stage: Stage) -> Conversation:
        rng = self.rng
        style = Style(
            turn_words=(1, rng.choice((3, 5, 8, 12)) if stage.frames >= 300 else 4),
            gap_s=(0.05, rng.choice((0.5, 1.2, 3.0)) if stage.frames >= 300 else 0.3),
            overlap_probability=rng.choice((0.0, 0.2, 0.4)),
            level_db=(rng.choice((-12.0, -6.0, -3.0)), 0.0),
            introduction_s=stage.introduction_s if rng.random() < stage.introduced else None,
        )
        seconds = stage.frames * FRAME_SAMPLES / SAMPLE_RATE
        voices = self.voices(rng.choice(stage.voices))
        return converse(self.bank, voices, seconds, rng, style, speed_jitter=SPEED_JITTER)

    def batch(self, stage: Stage) -> Batch:
        audio, activity = np.zeros((stage.batch, stage.frames * FRAME_SAMPLES), np.float32), []
        classes = np.zeros((stage.batch, stage.frames), np.int64)
        for row in range(stage.batch):
            conversation = self.conversation(stage)
            is_clean = self.rng.random() < CLEAN_SHARE
            audio[row] = conversation.samples if is_clean else degrade(conversation.samples, self.rng, self.noise)
            active = conversation.activity(MAX_SPEAKERS)
            activity.append(active)
            for speaker, voice in enumerate(conversation.voices):
                band = int(np.searchsorted((0.93, 1.07), voice.speed))
                classes[row, active[:, speaker]] = self.classes[voice.name, band]
            classes[row, active.sum(1) > 1] = -100
        stacked = torch.from_numpy(np.stack(activity).astype(np.float32))
        return Batch(torch.from_numpy(audio), stacked, torch.from_numpy(classes))


OFFLINE_EVERY = 3
"""When streaming, one step in so many is offline, which keeps the helping heads at work."""

SHARPNESS = 1.7
"""Factor of these queries and keys: a frame with the same embedding gets a hundred times the weight of another one."""


def attend_to_what_is_alike(model: Any) -> None:
    """Start the attention with equal queries and keys: a frame attends to those that are like it, which are those of its speaker.
    From random weights this takes hundreds of steps to be found."""
    with torch.no_grad():
        for layer in model.transformer_encoder.layers:
            attention = layer.first_sub_layer
            attention.key_net.weight.copy_(attention.query_net.weight)
            attention.key_net.bias.copy_(attention.query_net.bias)
            for net in (attention.query_net, attention.key_net):
                net.weight *= SHARPNESS
        for layer in model.encoder.layers:
            layer.self_attn.linear_k.weight.copy_(layer.self_attn.linear_q.weight)


class Trainer:
    """A model, the heads that help it, and the average of its weights."""

    def __init__(self, initial: Path | None, voice_classes: int) -> None:
        from nemo.collections.asr.models import SortformerEncLabelModel
        from nemo.core.classes.common import typecheck
        from omegaconf import OmegaConf

        typecheck.set_typecheck_enabled(False)
        settings = OmegaConf.create(config(VOICES))
        self.model: Any = SortformerEncLabelModel(cfg=settings)
        self.average: Any = SortformerEncLabelModel(cfg=settings).eval()
        if initial:
            self.model.load_state_dict(
                SortformerEncLabelModel.restore_from(str(initial), map_location="cpu").float().state_dict()
            )
        self.average.load_state_dict(self.model.state_dict())
        self.model.preprocessor.featurizer.dither = 0.0
        if not initial:
            attend_to_what_is_alike(self.model)
            self.average.load_state_dict(self.model.state_dict())
        self.pair_head = torch.nn.Parameter(torch.tensor([5.0, -2.0]))
        self.voice_head = torch.nn.Linear(VOICES.transformer_width, voice_classes)
        self.column_head = torch.nn.Linear(VOICES.transformer_width, MAX_SPEAKERS)
        self.parameters = [
            *self.model.parameters(),
            *self.voice_head.parameters(),
            *self.column_head.parameters(),
            self.pair_head,
        ]
        self.model.train()
        self.shown = ""

    def forward(self, batch: Batch, streaming: bool) -> tuple[Tensor, Tensor]:
        """Logits of the diarization, [batch, frames, MAX_SPEAKERS], and the loss of the helping heads."""
        model = self.model
        frames = batch.activity.shape[1]
        with torch.no_grad():
            lengths = torch.full((len(batch.audio),), batch.audio.shape[1])
            features, counts = model.preprocessor(input_signal=batch.audio, length=lengths)
            features, counts = features[:, :, : 8 * frames], counts.clamp(max=8 * frames)
        if streaming:
            found = model.forward_streaming(features, counts).clamp(1e-6, 1 - 1e-6)
            return torch.logit(found), torch.zeros(())
        embedded, embedded_counts = model.frontend_encoder(features, counts)
        found = model.forward_infer(embedded, embedded_counts).clamp(1e-6, 1 - 1e-6)
        named = functional.cross_entropy(self.voice_head(embedded).flatten(0, 1), batch.voice_classes.flatten())
        columns = diarization_loss(self.column_head(embedded), batch.activity)
        paired = self._pair_loss(embedded, batch.voice_classes)
        self.shown = f"named {named.item():.2f} columns {columns.item():.3f} paired {paired.item():.3f}"
        return torch.logit(found), 0.2 * named + 0.5 * columns + paired

    def _pair_loss(self, embedded: Tensor, voice_classes: Tensor) -> Tensor:
        """Whether two frames in which one person speaks have the same one, by the cosine of their embeddings."""
        directions = functional.normalize(embedded[:, ::2], dim=-1)
        logits = self.pair_head[0] * directions @ directions.mT + self.pair_head[1]
        voices = voice_classes[:, ::2]
        is_same = voices[:, :, None] == voices[:, None, :]
        counted = (voices > 0)[:, :, None] & (voices > 0)[:, None, :]
        losses = functional.binary_cross_entropy_with_logits(logits, is_same.float(), reduction="none")
        # Pairs of two people count as much as pairs of one.
        parts = [losses[counted & kind].mean() for kind in (is_same, ~is_same) if (counted & kind).any()]
        return torch.stack(parts).mean() if parts else losses.sum() * 0

    def update_average(self, step: int) -> None:
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
                mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)

    def save(self, out: Path) -> None:
        """The average, its layers in half precision: who loads it casts."""
        exact = {name: value.clone() for name, value in self.average.state_dict().items()}
        layers = (self.average.encoder, self.average.transformer_encoder, self.average.sortformer_modules)
        for layer in layers:
            layer.half()
        self.average.save_to(str(out))
        for layer in layers:
            layer.float()
        self.average.load_state_dict(exact)


def train(arguments: argparse.Namespace, material: Material) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    trainer = Trainer(arguments.initial, 1 + 3 * len(material.bank))
    optimizer = torch.optim.AdamW(trainer.parameters, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=1e-2)
    level, running, right, started = arguments.stage, 1.0, 0.0, time.monotonic()
    for step in range(arguments.steps):
        while arguments.pause.exists():
            time.sleep(1)
        warm, left = (step + 1) / 100, (arguments.steps - step) / (0.3 * arguments.steps)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(1.0, warm, left)
        is_break = STAGES[level].streaming and step % OFFLINE_EVERY == 0
        stage = STAGES[level - 1] if is_break else STAGES[level]
        batch = material.batch(stage)
        logits, helper = trainer.forward(batch, stage.streaming)
        loss = diarization_loss(logits, batch.activity)
        optimizer.zero_grad()
        torch.autograd.backward(loss + helper)
        torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
        optimizer.step()
        trainer.update_average(step)
        if not is_break:
            running = 0.95 * running + 0.05 * loss.item()
            right = 0.95 * right + 0.05 * right_frames(logits, batch.activity)
        if right > STAGES[level].enough:
            level, right = level + 1, 0.0
        if step % 25 == 0:
            seconds = time.monotonic() - started
            print(
                f"{step} stage {level} loss {running:.3f} right {right:.3f} helpers {trainer.shown} {seconds:.0f} s", flush=True
            )
        if step % 50 == 49:
            trainer.save(arguments.out)
    trainer.save(arguments.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=[], help="people of the recordings that are left out")
    parser.add_argument("--initial", type=Path, help="continue training a model of this tool")
    parser.add_argument("--stage", type=int, default=0, help="stage of the curriculum to begin with")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pause", type=Path, default=Path("pause"), help="training waits while this file exists")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    people = {name: voice for name, voice in load_bank(arguments.recordings, TRAINING_INDEXES).items()}
    people = {name: voice for name, voice in people.items() if name not in arguments.without}
    bank = people | synthesise_bank(2, rng)
    train(arguments, Material(bank, sorted(people), arguments.seed))


if __name__ == "__main__":
    main()
