"""Phrase boosting: the decoder prefers the keywords of a request. Each window of a batch may have its own list.

The method is NeMo's GPU-PB (NeMo pull request 14277, and later ones on per-stream biasing). A prefix tree of the phrases' tokens
raises the score of a token that continues a phrase, and subtracts the bonus again where the phrase is not completed. The score of
blank is not changed, so boosting replaces words but does not insert any.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from serve_app.engine.cuda_graphs import GraphDecoder
from serve_app.window import Keywords

MAX_TREES = 32
"""Trees kept for later batches; one batch may use more. With a vocabulary of 8,192 tokens, 32 trees of maximal size fit NeMo's
pool of a million arcs. When the pool has to grow, NeMo drops the CUDA graphs, and the decoder captures them again."""


class Booster:
    """A decoder with phrase boosting, for batches with keywords. Batches without use the model's own decoder, which is faster.

    `weight` multiplies the bonus. Not thread-safe.
    """

    def __init__(self, model: Any, weight: float) -> None:
        import torch
        from omegaconf import open_dict

        config = copy.deepcopy(model.cfg.decoding)
        with open_dict(config):
            config.greedy.enable_per_stream_biasing = True
        # NeMo moves the tensors of the trees to the device outside inference mode, which fails for tensors created inside it. The
        # same holds wherever trees are added or removed.
        with torch.inference_mode(False):
            decoding = type(model.decoding)(
                decoding_cfg=config, decoder=model.decoder, joint=model.joint, tokenizer=model.tokenizer
            )
        computer = decoding.decoding.decoding_computer
        self.decoder = GraphDecoder(computer)
        self._tokenizer = model.tokenizer
        self._weight = weight
        # NeMo drops the graphs when the pool of trees has to grow.
        self._trees = computer.biasing_multi_model
        # Least recently used first. None: the vocabulary covers no phrase of the list.
        self._requests: OrderedDict[Keywords, Any] = OrderedDict()

    def decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> Any:
        """NeMo's BatchedHyps, which may have more rows than there are windows.

        `encoded`: float [windows, frames, features]. `frame_counts`: int [windows]. `keywords`: one list per window, maybe empty.
        After an exception, the state of the decoder is unknown: make a new Booster.
        """
        import torch

        self._prepare(set(keywords) - {()})
        requests = [self._requests.get(phrases) for phrases in keywords]
        tree_ids = [-1 if request is None else request.multi_model_id for request in requests]
        return self.decoder(encoded, frame_counts, torch.tensor(tree_ids, device=encoded.device))

    def _prepare(self, wanted: set[Keywords]) -> None:
        """Build the trees of the wanted lists that are missing; beyond MAX_TREES remove the least recently used others."""
        import torch

        missing = [phrases for phrases in wanted if phrases not in self._requests]
        unused = [phrases for phrases in self._requests if phrases not in wanted]
        with torch.inference_mode(False), torch.no_grad():
            for phrases in unused[: max(0, len(self._requests) + len(missing) - MAX_TREES)]:
                request = self._requests.pop(phrases)
                if request is not None:
                    request.remove_from_multi_model(self._trees)
            for phrases in missing:
                self._requests[phrases] = self._build(phrases)
        for phrases in wanted:
            self._requests.move_to_end(phrases)

    def _build(self, phrases: Keywords) -> Any:
        from nemo.collections.asr.parts.context_biasing import BoostingTreeModelConfig
        from nemo.collections.asr.parts.context_biasing.biasing_multi_model import BiasingRequestItemConfig

        covered = [spelling for spelling in _spellings(phrases) if self._is_covered(spelling)]
        if not covered:
            return None
        tree = BoostingTreeModelConfig(key_phrases_list=covered, use_triton=self._trees.use_triton)
        request = BiasingRequestItemConfig(tree, boosting_model_alpha=self._weight)
        request.add_to_multi_model(self._tokenizer, self._trees)
        return request

    def _is_covered(self, phrase: str) -> bool:
        """Whether the vocabulary covers the phrase. An unknown token, if boosted, would be emitted everywhere."""
        token_ids = self._tokenizer.text_to_ids(phrase)
        return bool(token_ids) and self._tokenizer.ids_to_text(token_ids) == phrase


def _spellings(phrases: Keywords) -> list[str]:
    """Each phrase as given, and with its first letter in upper case, as at the start of a sentence."""
    return list(dict.fromkeys(spelling for phrase in phrases for spelling in (phrase, phrase[:1].upper() + phrase[1:])))
