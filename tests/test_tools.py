"""The tools that train the bundled model and measure its accuracy."""

import math
import random
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from serve_app.transcript import Word
from testing.accuracy import add_noise, judge
from testing.augmentation import cut_like_a_window, degrade
from testing.digit_strings import DIGIT_NAMES, SAMPLE_RATE, SENTENCE_PAUSE_S, Bank, Pauses, compose
from tools.fastconformer_tdt import DURATIONS
from tools.rnnt_loss import rnnt_loss
from tools.tdt_loss import Alignment, tdt_loss
from tools.train_heads import CTC_SLACK, forbidden


def unrestricted(labels: int) -> Alignment:
    low, high = torch.zeros(1, labels, dtype=torch.long), torch.full((1, labels), 1000)
    return Alignment(low, high, low, high)


def loss_by_enumeration(joint: torch.Tensor, labels: list[int], frames: int, alignment: Alignment) -> float:
    """The loss with sigma 0 as an explicit sum over all paths, from a float64 joint."""
    token = torch.log_softmax(joint[..., : -len(DURATIONS)], -1)
    duration = torch.log_softmax(joint[..., -len(DURATIONS) :], -1)
    blank = token.shape[-1] - 1

    def total(t: int, u: int) -> float:
        if t == frames:
            return 1.0 if u == len(labels) else 0.0
        if t > frames:
            return 0.0
        probability = 0.0
        for n, d in enumerate(DURATIONS):
            step = math.exp(duration[t, u, n])
            if d > 0:
                probability += math.exp(token[t, u, blank]) * step * total(t + d, u)
            allowed = u < len(labels) and (
                alignment.first_frame[0, u] <= t <= alignment.last_frame[0, u]
                and alignment.first_landing[0, u] <= t + d <= alignment.last_landing[0, u]
            )
            # Every path ends with a blank, so at least one frame must follow a token.
            if allowed and t + d < frames:
                probability += math.exp(token[t, u, labels[u]]) * step * total(t + d, u + 1)
        return probability

    return -math.log(total(0, 0))


@pytest.mark.parametrize(("frames", "labels"), list(product([3, 5, 6], [[], [1], [0, 2], [1, 1, 0]])))
def test_the_loss_is_the_sum_over_all_paths(frames: int, labels: list[int]) -> None:
    torch.manual_seed(frames * 10 + len(labels))
    joint = torch.randn(1, frames, len(labels) + 1, 4 + len(DURATIONS), dtype=torch.float64)
    alignment = unrestricted(max(len(labels), 1))
    padded = torch.tensor([labels or [0]])
    if not labels:
        joint = torch.cat([joint, joint], 2)
    loss = tdt_loss(joint, padded, torch.tensor([frames]), torch.tensor([len(labels)]), alignment, DURATIONS, sigma=0.0)
    assert loss.item() == pytest.approx(loss_by_enumeration(joint[0], labels, frames, alignment), rel=1e-6)


def test_the_alignment_excludes_paths() -> None:
    torch.manual_seed(0)
    joint = torch.randn(1, 6, 3, 4 + len(DURATIONS), dtype=torch.float64)
    bounds = Alignment(*(torch.tensor([row]) for row in ([0, 2], [1, 4], [0, 3], [3, 5])))
    loss = tdt_loss(joint, torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2]), bounds, DURATIONS, sigma=0.0)
    assert loss.item() == pytest.approx(loss_by_enumeration(joint[0], [1, 2], 6, bounds), rel=1e-6)
    free = loss_by_enumeration(joint[0], [1, 2], 6, unrestricted(2))
    assert loss.item() > free + 0.1


def test_padding_does_not_change_the_loss() -> None:
    torch.manual_seed(1)
    joint = torch.randn(2, 7, 4, 4 + len(DURATIONS), dtype=torch.float64)
    labels, counts = torch.tensor([[1, 2, 0], [2, 0, 0]]), torch.tensor([3, 1])
    wide = Alignment(*(torch.tensor([[low] * 3] * 2) for low in (0, 1000, 0, 1000)))
    both = tdt_loss(joint, labels, torch.tensor([7, 4]), counts, wide, DURATIONS)
    alone = tdt_loss(joint[1:, :4, :2], labels[1:, :1], torch.tensor([4]), counts[1:], unrestricted(1), DURATIONS)
    assert both[1].item() == pytest.approx(alone.item())


def rnnt_loss_by_enumeration(joint: torch.Tensor, labels: list[int], alignment: Alignment) -> float:
    """The transducer's loss as an explicit sum over all paths, from a float64 joint [frames, labels + 1, vocabulary + 1]."""
    scores = torch.log_softmax(joint, -1)
    frames, blank = len(joint), joint.shape[-1] - 1

    def total(t: int, u: int) -> float:
        if t == frames:
            return 1.0 if u == len(labels) else 0.0
        probability = math.exp(scores[t, u, blank]) * total(t + 1, u)
        if u < len(labels) and alignment.first_frame[0, u] <= t <= alignment.last_frame[0, u]:
            probability += math.exp(scores[t, u, labels[u]]) * total(t, u + 1)
        return probability

    return -math.log(total(0, 0))


class TestTransducerLoss:
    @pytest.mark.parametrize(("frames", "labels"), list(product([1, 3, 6], [[1], [0, 2], [1, 1, 0]])))
    def test_it_is_the_sum_over_all_paths(self, frames: int, labels: list[int]) -> None:
        torch.manual_seed(frames * 10 + len(labels))
        joint = torch.randn(1, frames, len(labels) + 1, 4, dtype=torch.float64)
        loss = rnnt_loss(joint, torch.tensor([labels]), torch.tensor([frames]), torch.tensor([len(labels)]))
        assert loss.item() == pytest.approx(rnnt_loss_by_enumeration(joint[0], labels, unrestricted(len(labels))), rel=1e-6)

    def test_the_alignment_excludes_paths(self) -> None:
        torch.manual_seed(0)
        joint = torch.randn(1, 6, 3, 4, dtype=torch.float64)
        bounds = Alignment(*(torch.tensor([row]) for row in ([0, 2], [1, 4], [0, 0], [9, 9])))
        loss = rnnt_loss(joint, torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2]), bounds)
        assert loss.item() == pytest.approx(rnnt_loss_by_enumeration(joint[0], [1, 2], bounds), rel=1e-6)
        assert loss.item() > rnnt_loss_by_enumeration(joint[0], [1, 2], unrestricted(2)) + 0.1

    def test_padding_does_not_change_it(self) -> None:
        torch.manual_seed(1)
        joint = torch.randn(2, 7, 4, 4, dtype=torch.float64)
        labels, counts = torch.tensor([[1, 2, 0], [2, 0, 0]]), torch.tensor([3, 1])
        both = rnnt_loss(joint, labels, torch.tensor([7, 4]), counts)
        alone = rnnt_loss(joint[1:, :4, :2], labels[1:, :1], torch.tensor([4]), counts[1:])
        assert both[1].item() == pytest.approx(alone.item())

    @pytest.mark.slow
    def test_it_is_the_loss_of_nemo(self) -> None:
        from nemo.collections.asr.losses.rnnt_pytorch import RNNTLossPytorch

        torch.manual_seed(2)
        joint = torch.randn(3, 9, 5, 8, requires_grad=True)
        labels = torch.randint(0, 7, (3, 4))
        frame_counts, counts = torch.tensor([9, 6, 4]), torch.tensor([4, 2, 3])
        ours = rnnt_loss(joint, labels, frame_counts, counts)
        theirs = RNNTLossPytorch(blank=7, reduction="none")(acts=joint, labels=labels, act_lens=frame_counts, label_lens=counts)
        assert torch.allclose(ours, theirs, atol=1e-5)
        our_gradient, their_gradient = (torch.autograd.grad(loss.sum(), joint, retain_graph=True)[0] for loss in (ours, theirs))
        assert torch.allclose(our_gradient, their_gradient, atol=1e-5)


def test_ctc_tokens_are_allowed_around_their_words_and_blanks_everywhere() -> None:
    alignment = Alignment(*(torch.tensor([row]) for row in ([5, 20, 0], [7, 22, 0], [0, 0, 0], [0, 0, 0])))
    labels, counts = torch.tensor([[3, 1, 0]]), torch.tensor([2])
    allowed = ~forbidden(alignment, labels, counts, torch.zeros(1, 30, 5))[0]
    assert allowed[:, 4].all()
    assert allowed[:, 3].nonzero().flatten().tolist() == list(range(5 - CTC_SLACK, 8 + CTC_SLACK))
    assert allowed[:, 1].nonzero().flatten().tolist() == list(range(20 - CTC_SLACK, 23 + CTC_SLACK))
    assert not allowed[:, [0, 2]].any(), "one token is not spoken, the other is padding"


class TestCompose:
    def test_speech_is_only_within_the_word_times(self, bank: Bank) -> None:
        rng = random.Random(3)
        string = compose(bank["flite-slt"], [7, 2, 9, 4, 1], rng)
        is_speech = np.zeros(len(string.samples), dtype=bool)
        for word in string.words:
            is_speech[word.start_sample : word.end_sample] = True
            assert np.abs(string.samples[word.start_sample : word.end_sample]).max() > 0.1
        assert np.abs(string.samples[~is_speech]).max() < 0.03

    def test_a_sentence_ends_at_a_long_pause_and_the_next_starts_with_a_capital(self, bank: Bank) -> None:
        rng = random.Random(4)
        string = compose(bank["flite-slt"], [rng.randrange(10) for _ in range(40)], rng)
        assert [w.text.strip(".").lower() for w in string.words] == [DIGIT_NAMES[w.digit] for w in string.words]
        assert string.words[0].text[0].isupper()
        assert string.words[-1].text.endswith(".")
        for word, following in pairwise(string.words):
            pause_s = (following.start_sample - word.end_sample) / SAMPLE_RATE
            assert word.text.endswith(".") == (pause_s >= SENTENCE_PAUSE_S) == following.text[0].isupper()

    def test_the_same_seed_gives_the_same_audio(self, bank: Bank) -> None:
        first, second = (compose(bank["flite-slt"], [1, 2, 3], random.Random(5), Pauses()) for _ in range(2))
        assert np.array_equal(first.samples, second.samples)


def test_a_cut_keeps_the_words_that_are_mostly_inside(bank: Bank) -> None:
    rng = random.Random(6)
    cuts = 0
    for _ in range(60):
        whole = compose(bank["flite-slt"], [1, 2, 3, 4], rng)
        cut = cut_like_a_window(whole, rng)
        cuts += len(cut.samples) < len(whole.samples)
        for word in cut.words:
            assert 0 <= word.start_sample < word.end_sample <= len(cut.samples)
        assert len(whole.words) - 2 <= len(cut.words) <= len(whole.words)
        assert not cut.words or cut.words[0].text[0].isupper()
    assert cuts > 20


def test_degraded_audio_is_finite_and_of_the_same_shape(bank: Bank) -> None:
    rng, noise = random.Random(7), np.random.default_rng(7)
    for _ in range(40):
        string = compose(bank["espeak-male"], [1, 2], rng)
        degraded = degrade(string.samples, rng, noise)
        assert degraded.dtype == np.float32
        assert degraded.shape == string.samples.shape
        assert np.isfinite(degraded).all()


class TestJudge:
    def test_the_reference_has_no_errors(self, bank: Bank) -> None:
        string = compose(bank["flite-slt"], [1, 2, 3], random.Random(8))
        reference = [Word(w.text, w.start_sample / SAMPLE_RATE, w.end_sample / SAMPLE_RATE, 1.0) for w in string.words]
        figures = judge([string], [reference])
        assert (figures.word_error_rate, figures.exact_sentence_rate, figures.exact_string_rate) == (0, 1, 1)
        assert (figures.start_error_s, figures.end_error_s) == (0, 0)

    def test_errors_are_counted(self, bank: Bank) -> None:
        string = compose(bank["flite-slt"], [1, 2, 3, 4], random.Random(8), sentence_words=(2, 2))
        recognised = [Word(w.text, w.start_sample / SAMPLE_RATE + 0.1, w.end_sample / SAMPLE_RATE, 1.0) for w in string.words]
        recognised[3] = Word("nine.", 0.0, 0.1, 1.0)
        figures = judge([string], [recognised])
        assert figures.word_error_rate == 0.25
        assert (figures.sentences, figures.exact_sentence_rate, figures.exact_string_rate) == (2, 0.5, 0)
        assert figures.start_error_s == pytest.approx(0.1)

    def test_a_missing_full_stop_is_a_sentence_error_but_not_a_word_error(self, bank: Bank) -> None:
        string = compose(bank["flite-slt"], [5], random.Random(8))
        figures = judge([string], [[Word("Five", 0.0, 0.1, 1.0)]])
        assert (figures.word_error_rate, figures.exact_sentence_rate) == (0, 0)


def test_noise_has_the_requested_ratio(bank: Bank) -> None:
    string = compose(bank["flite-slt"], [1, 2, 3], random.Random(9))
    noise = add_noise(string, 15, 0).samples - string.samples
    speech = np.concatenate([string.samples[w.start_sample : w.end_sample] for w in string.words])
    assert 10 * np.log10(np.mean(speech**2) / np.mean(noise**2)) == pytest.approx(15, abs=0.5)
