"""Phrase boosting: the decoder leans towards phrases that are likely, in each window of a batch towards its own.

NeMo's GPU-PB (its pull requests 14277 and those on per-stream biasing): a prefix tree of the phrases' tokens adds to the score of
a token that goes on with a phrase, and takes it back where the phrase breaks off. Where the model says nothing, nothing is added:
boosting changes words, it does not make up any. Like the engine, for one thread.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from serve_app.window import Keywords

MAX_TREES = 32
"""Trees kept for the windows to come, unless a batch has more. Of the largest lists and a vocabulary of 8,192 NeMo has room for
so many; beyond, it takes more memory, and the graphs of a GPU have to be captured again."""


class Booster:
    """A second decoder for a model, which batches with keywords use: without them the first one is faster.

    `capture_graphs` has a decoder capture its graphs, where it has any.
    """

    def __init__(self, model: Any, weight: float, capture_graphs: Callable[[Any], None]) -> None:
        import torch
        from omegaconf import open_dict

        config = copy.deepcopy(model.cfg.decoding)
        with open_dict(config):
            config.greedy.enable_per_stream_biasing = True
        # Tensors made in inference mode could not be changed outside it, where NeMo moves them to a device. So here, and wherever
        # trees come and go.
        with torch.inference_mode(False):
            self._decoding = type(model.decoding)(
                decoding_cfg=config, decoder=model.decoder, joint=model.joint, tokenizer=model.tokenizer
            )
        self._tokenizer = model.tokenizer
        self._weight = weight
        self._capture_graphs = capture_graphs
        self._trees = self._decoding.decoding.decoding_computer.biasing_multi_model
        # The lists used last, the newest at the end; None for one of which the model can write no phrase.
        self._requests: OrderedDict[Keywords, Any] = OrderedDict()
        capture_graphs(self._decoding)

    def decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> list[Any]:
        """NeMo's hypotheses of a batch, `encoded` being float [windows, features, frames]; `keywords` has one list per window.

        After a failure the state of the decoder is unknown: make another.
        """
        from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis

        self._prepare(set(keywords) - {()})
        requests = [self._requests.get(phrases) for phrases in keywords]
        partial = [None if request is None else Hypothesis.empty_with_biasing_cfg(request) for request in requests]
        hypotheses: list[Any] = self._decoding.rnnt_decoder_predictions_tensor(
            encoded, frame_counts, return_hypotheses=True, partial_hypotheses=partial
        )
        return hypotheses

    def _prepare(self, wanted: set[Keywords]) -> None:
        """Have a tree for every list that is wanted, and let go of those that were not for the longest time."""
        import torch

        missing = [phrases for phrases in wanted if phrases not in self._requests]
        unused = [phrases for phrases in self._requests if phrases not in wanted]
        room_before = self._room()
        with torch.inference_mode(False), torch.no_grad():
            for phrases in unused[: max(0, len(self._requests) + len(missing) - MAX_TREES)]:
                request = self._requests.pop(phrases)
                if request is not None:
                    request.remove_from_multi_model(self._trees)
            for phrases in missing:
                self._requests[phrases] = self._build(phrases)
        for phrases in wanted:
            self._requests.move_to_end(phrases)
        if self._room() != room_before:
            self._capture_graphs(self._decoding)

    def _room(self) -> tuple[int, ...]:
        trees = self._trees
        return trees.num_models_reserved, trees.num_states_reserved, trees.num_arcs_extended_reserved

    def _build(self, phrases: Keywords) -> Any:
        from nemo.collections.asr.parts.context_biasing import BoostingTreeModelConfig
        from nemo.collections.asr.parts.context_biasing.biasing_multi_model import BiasingRequestItemConfig

        writable = [spelling for spelling in _spellings(phrases) if self._can_write(spelling)]
        if not writable:
            return None
        tree = BoostingTreeModelConfig(key_phrases_list=writable, use_triton=self._trees.use_triton)
        request = BiasingRequestItemConfig(tree, boosting_model_alpha=self._weight)
        request.add_to_multi_model(self._tokenizer, self._trees)
        return request

    def _can_write(self, phrase: str) -> bool:
        """Whether the vocabulary has all of it: boosting the unknown token would write it everywhere."""
        token_ids = self._tokenizer.text_to_ids(phrase)
        return bool(token_ids) and self._tokenizer.ids_to_text(token_ids) == phrase


def _spellings(phrases: Keywords) -> list[str]:
    """Each phrase as it was given, and as it begins a sentence."""
    return list(dict.fromkeys(spelling for phrase in phrases for spelling in (phrase, phrase[:1].upper() + phrase[1:])))
