"""Phrase boosting: the decoder prefers the phrases of a request, for each window of a batch its own.

NeMo's GPU-PB (its pull request 14277 and those on per-stream biasing): a prefix tree of the phrases' tokens raises the score of a
token that continues a phrase, and takes the bonus back where the phrase is not completed. Blank is not boosted: boosting changes
words, it does not insert any. Like the engine, it is used by one thread.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from serve_app.window import Keywords

MAX_TREES = 32
"""Trees kept for later windows, unless one batch needs more. 32 trees of maximal size and a vocabulary of 8,192 fit
NeMo's pool of a million arcs; with more, the pool grows and CUDA graphs are captured again."""


class Booster:
    """A second decoder of a model, for batches with keywords; the first one is faster for batches without.

    `capture_graphs` makes a decoder capture its CUDA graphs, where it uses any.
    """

    def __init__(self, model: Any, weight: float, capture_graphs: Callable[[Any], None]) -> None:
        import torch
        from omegaconf import open_dict

        config = copy.deepcopy(model.cfg.decoding)
        with open_dict(config):
            config.greedy.enable_per_stream_biasing = True
        # NeMo moves these tensors to a device outside inference mode, which is impossible for tensors created inside it. The same
        # holds wherever trees are added or removed.
        with torch.inference_mode(False):
            self._decoding = type(model.decoding)(
                decoding_cfg=config, decoder=model.decoder, joint=model.joint, tokenizer=model.tokenizer
            )
        self._tokenizer = model.tokenizer
        self._weight = weight
        self._capture_graphs = capture_graphs
        self._trees = self._decoding.decoding.decoding_computer.biasing_multi_model
        # By phrase list, least recently used first; None: the model can write none of its phrases.
        self._requests: OrderedDict[Keywords, Any] = OrderedDict()
        capture_graphs(self._decoding)

    def decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> list[Any]:
        """NeMo's hypotheses of a batch: `encoded` is float [windows, features, frames], `keywords` has one list per window.

        After an exception the decoder's state is unknown: make a new Booster.
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
        """Build the missing trees of the wanted lists, and remove the least recently used ones beyond MAX_TREES."""
        import torch

        missing = [phrases for phrases in wanted if phrases not in self._requests]
        unused = [phrases for phrases in self._requests if phrases not in wanted]
        room_before = self._pool_size()
        with torch.inference_mode(False), torch.no_grad():
            for phrases in unused[: max(0, len(self._requests) + len(missing) - MAX_TREES)]:
                request = self._requests.pop(phrases)
                if request is not None:
                    request.remove_from_multi_model(self._trees)
            for phrases in missing:
                self._requests[phrases] = self._build(phrases)
        for phrases in wanted:
            self._requests.move_to_end(phrases)
        if self._pool_size() != room_before:
            self._capture_graphs(self._decoding)

    def _pool_size(self) -> tuple[int, ...]:
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
        """Whether the vocabulary covers the phrase: a boosted unknown token would be emitted everywhere."""
        token_ids = self._tokenizer.text_to_ids(phrase)
        return bool(token_ids) and self._tokenizer.ids_to_text(token_ids) == phrase


def _spellings(phrases: Keywords) -> list[str]:
    """Each phrase as given, and with a capital as at the start of a sentence."""
    return list(dict.fromkeys(spelling for phrase in phrases for spelling in (phrase, phrase[:1].upper() + phrase[1:])))
