"""Phrase boosting: the decoder leans towards phrases that are likely, in each window of a batch towards its own.

NeMo's GPU-PB (its pull requests 14277 and those on per-stream biasing): a prefix tree of the phrases' tokens adds to the score of
a token that goes on with a phrase, and takes it back where the phrase breaks off. Where the model says nothing, nothing is added:
boosting changes words, it does not make up any. Like the engine, for one thread.
"""

import copy
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from serve_app.transcript import Keywords

log = logging.getLogger("ray.serve")

MOST_TREES = 64
"""Trees kept for the windows to come. NeMo has room for so many of the largest lists and a vocabulary of 8,192 before it has to
take more memory, for which a GPU's graphs would be captured anew."""


class Booster:
    """A second decoder for a model, which batches with keywords use: without them the first one is faster."""

    def __init__(self, model: Any, weight: float) -> None:
        import torch
        from omegaconf import open_dict

        config = copy.deepcopy(model.cfg.decoding)
        with open_dict(config):
            config.greedy.enable_per_stream_biasing = True
        # Tensors made in inference mode could not be changed outside it, where NeMo moves them to a device. So here, and wherever
        # trees come and go.
        with torch.inference_mode(False):
            self.decoding = type(model.decoding)(
                decoding_cfg=config, decoder=model.decoder, joint=model.joint, tokenizer=model.tokenizer
            )
        self._tokenizer = model.tokenizer
        self._weight = weight
        self._trees = self.decoding.decoding.decoding_computer.biasing_multi_model
        # The lists used last, the newest at the end; None for one of which the model can write no phrase.
        self._requests: OrderedDict[Keywords, Any] = OrderedDict()

    def decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> list[Any]:
        """NeMo's hypotheses of a batch, `encoded` being float [windows, features, frames]; `keywords` has one list per window."""
        from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis

        requests = [self._request(phrases) if phrases else None for phrases in keywords]
        partial = [None if request is None else Hypothesis.empty_with_biasing_cfg(request) for request in requests]
        hypotheses: list[Any] = self.decoding.rnnt_decoder_predictions_tensor(
            encoded, frame_counts, return_hypotheses=True, partial_hypotheses=partial
        )
        self._forget(keep=set(keywords))
        return hypotheses

    def _request(self, phrases: Keywords) -> Any:
        if phrases not in self._requests:
            self._requests[phrases] = self._build(phrases)
        self._requests.move_to_end(phrases)
        return self._requests[phrases]

    def _build(self, phrases: Keywords) -> Any:
        import torch
        from nemo.collections.asr.parts.context_biasing import BoostingTreeModelConfig
        from nemo.collections.asr.parts.context_biasing.biasing_multi_model import BiasingRequestItemConfig

        writable = [spelling for spelling in _spellings(phrases) if self._can_write(spelling)]
        if not writable:
            return None
        tree = BoostingTreeModelConfig(key_phrases_list=writable, use_triton=self._trees.use_triton)
        request = BiasingRequestItemConfig(tree, boosting_model_alpha=self._weight)
        with torch.inference_mode(False), torch.no_grad():
            request.add_to_multi_model(self._tokenizer, self._trees)
        return request

    def _can_write(self, phrase: str) -> bool:
        """Whether every character is in the vocabulary: boosting the unknown token would write it everywhere."""
        token_ids: list[int] = self._tokenizer.text_to_ids(phrase)
        unknown = self._tokenizer.tokenizer.unk_id()
        return bool(token_ids) and unknown not in token_ids

    def _forget(self, keep: set[Keywords]) -> None:
        import torch

        for phrases in [phrases for phrases in self._requests if phrases not in keep]:
            if len(self._requests) <= MOST_TREES:
                return
            request = self._requests.pop(phrases)
            if request is not None:
                with torch.inference_mode(False), torch.no_grad():
                    request.remove_from_multi_model(self._trees)


def _spellings(phrases: Keywords) -> list[str]:
    """Each phrase as it was given, and as it begins a sentence."""
    return list(dict.fromkeys(spelling for phrase in phrases for spelling in (phrase, phrase[:1].upper() + phrase[1:])))
