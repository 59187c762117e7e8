"""Lets the layers of a Sortformer run in another number format than fp32. Imports torch when it is used."""

from typing import Any


def keep_state_in_fp32(model: Any, dtype: Any) -> None:
    """Have a NeMo `SortformerEncLabelModel`, whose encoders are in `dtype` and whose last layers are not, take features and give
    embeddings and probabilities in fp32.

    What lasts from step to step needs it: the mean of silence is a sum over the whole recording, and the choice of the frames to
    remember compares probabilities, many of them near 1.
    """
    from torch import Tensor, nn

    modules = model.sortformer_modules
    pre_encode, encode, sigmoids = model.encoder.pre_encode, model.frontend_encoder, modules.forward_speaker_sigmoids

    class PreEncoding(nn.Module):
        """As `pre_encode`."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = pre_encode

        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            embeddings, lengths = self.inner(x=x.to(dtype), lengths=lengths)
            return embeddings.float(), lengths

    def frontend_encoder(processed_signal: Tensor, processed_signal_length: Tensor, **options: Any) -> Any:
        return encode(processed_signal.to(dtype), processed_signal_length, **options)

    model.encoder.pre_encode = PreEncoding()
    model.frontend_encoder = frontend_encoder
    modules.forward_speaker_sigmoids = lambda hidden: sigmoids(hidden.float())
