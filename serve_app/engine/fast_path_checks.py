"""What the check of a fast path compares: output of the part of the model that it changes, for windows of a clip of speech."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.speech_clip import speech_clip
from serve_app.window import SAMPLE_RATE

Part = Literal["preprocessor", "encoder", "prediction network"]
Outputs = list[Tensor]
"""One for each window of all batches."""

CHECK_LENGTHS_S = ((1.6, 0.9), (1.2,))
"""Lengths of the windows of the batches that are compared, seconds: one batch with padding and one without."""

TOKENS = 4
"""Length of the sequences that a prediction network gets, token by token."""


def preprocessor_outputs(model: Any) -> Callable[[], Outputs]:
    """What the model's preprocessor gives, whichever it has when the result is called; so with the other parts."""
    batches = _audio(model)

    def outputs() -> Outputs:
        return [row for batch in batches for row in _without_padding(*_features(model, *batch))]

    return outputs


def encoder_outputs(model: Any) -> Callable[[], Outputs]:
    """The features are those that the preprocessor gives now."""
    dtype = next(model.encoder.parameters()).dtype
    batches = [(features.to(dtype), frames) for features, frames in (_features(model, *batch) for batch in _audio(model))]

    def outputs() -> Outputs:
        encoded = (model.encoder(audio_signal=features, length=frames) for features, frames in batches)
        return [row for batch in encoded for row in _without_padding(*batch)]

    return outputs


def prediction_outputs(model: Any) -> Callable[[], Outputs]:
    """The outputs and the state after the last token."""
    decoder = model.decoder

    def outputs() -> Outputs:
        results: Outputs = []
        for windows in map(len, CHECK_LENGTHS_S):
            tokens = torch.arange(windows * TOKENS, device=next(decoder.parameters()).device) % decoder.vocab_size
            state = decoder.initialize_state(next(decoder.parameters()).new_zeros(windows, 1, 1))
            steps = []
            for column in tokens.view(windows, TOKENS).unbind(1):
                step, state = decoder.predict(column.unsqueeze(1), state, add_sos=False, batch_size=windows)
                steps.append(step.transpose(0, 1))
            results += torch.cat([*steps, *state]).float().unbind(1)
        return results

    return outputs


PARTS: dict[Part, Callable[[Any], Callable[[], Outputs]]] = {
    "preprocessor": preprocessor_outputs,
    "encoder": encoder_outputs,
    "prediction network": prediction_outputs,
}


def relative_error(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest of the windows, as root mean squares. Raises ValueError where they have another number of frames."""
    if [o.shape for o in outputs] != [e.shape for e in expected]:
        raise ValueError("it gives another number of frames")
    # Not Python's max(), which may ignore NaN.
    return float(torch.stack([(o - e).norm() / e.norm() for o, e in zip(outputs, expected, strict=True)]).max())


def _audio(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Audio, [windows, samples], and its lengths."""
    clip = speech_clip().astype(np.float32) / 32768
    device = next(model.encoder.parameters()).device
    batches = []
    for lengths_s in CHECK_LENGTHS_S:
        lengths = [round(length_s * SAMPLE_RATE) for length_s in lengths_s]
        audio = np.zeros((len(lengths), max(lengths)), np.float32)
        for row, length in zip(audio, lengths, strict=True):
            row[:length] = clip[:length]
        batches.append((torch.from_numpy(audio).to(device), torch.tensor(lengths, device=device)))
    return batches


def _features(model: Any, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    features, frames = model.preprocessor(input_signal=audio, length=lengths)
    return features, frames


def _without_padding(values: Tensor, lengths: Tensor) -> Outputs:
    """`values`: [windows, features, frames]"""
    return [row[:, :length].float() for row, length in zip(values, lengths.tolist(), strict=True)]
