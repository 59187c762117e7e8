"""Modules that compute what those of NeMo's Conformer encoder compute, for inference on whole windows, in less time.

Each is made from the module that it replaces and takes its arguments. Its constructor raises Unsuitable where that module is
another one than it can replace. Every frame of a window gets NeMo's value, but for rounding; the padding after it may get
another, which nothing reads. There are no caches of earlier windows: an encoder with them gets TypeError.
"""

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from nemo.collections.asr.parts.submodules.conformer_modules import ConformerConvolution
from nemo.collections.asr.parts.submodules.multi_head_attention import RelPositionMultiHeadAttention
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling
from torch import Tensor, nn

MASKED = -10_000.0
"""Score of a frame that is not attended to, as in NeMo: its weight rounds to 0."""


class Unsuitable(Exception):
    """A module is another one than a lean module can replace; the message says in what."""


class LeanAttention(nn.Module):
    """`RelPositionMultiHeadAttention` over whole windows: one projection for queries, keys and values, and the projections of the
    relative positions kept instead of computed for every batch.

    NeMo copies the scores by position to shift them; here they are read shifted, by their strides.
    """

    def __init__(self, stock: Any, positions: Tensor) -> None:
        """`positions`: NeMo's encodings of relative positions, [1, an odd number, features], position 0 in the middle. Windows
        for which they do not suffice have theirs projected with every batch."""
        super().__init__()
        require(type(stock) is RelPositionMultiHeadAttention, "the attention has no relative positions")
        self._heads, self._width = int(stock.h), int(stock.d_k)
        projections = (stock.linear_q, stock.linear_k, stock.linear_v)
        self.linear_qkv = _joined(projections)
        self.linear_pos, self.linear_out = stock.linear_pos, stock.linear_out
        self.pos_bias_u, self.pos_bias_v = stock.pos_bias_u, stock.pos_bias_v
        self._positions: Tensor
        self.register_buffer("_positions", self._projected(positions), persistent=False)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, pos_emb: Tensor, cache: None = None
    ) -> Tensor:
        """`query`, the same as `key` and `value`: [windows, frames, features]. `mask`: true where a frame does not see another,
        [windows, frames, frames]; only its first row is read, as the first frame of a window sees all but the padding."""
        windows, frames, _ = query.shape
        q, k, v = self.linear_qkv(query).view(windows, frames, 3, self._heads, self._width).unbind(2)
        by_position = torch.bmm(
            (q + self.pos_bias_v).view(windows * frames, self._heads, self._width).transpose(0, 1),
            self._positions_of(frames, pos_emb).transpose(1, 2),
        )
        bias = _shifted(by_position, windows, frames)
        hidden = None if mask is None else mask[:, None, :1]
        attend = _attend_fused if query.is_cuda else _attend
        q, k, v = ((q + self.pos_bias_u).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        output: Tensor = self.linear_out(attend(q, k, v, bias, hidden).transpose(1, 2).flatten(2))
        return output

    def _positions_of(self, frames: int, pos_emb: Tensor) -> Tensor:
        """The projected positions that a window of that length has, [heads, 2 frames - 1, width]."""
        spare = (self._positions.size(1) + 1) // 2 - frames
        if spare < 0:
            return self._projected(pos_emb)
        return self._positions[:, spare : spare + 2 * frames - 1]

    def _projected(self, positions: Tensor) -> Tensor:
        """[heads, positions, width], scaled as the scores are."""
        heads: Tensor = self.linear_pos(positions)[0].view(-1, self._heads, self._width).transpose(0, 1)
        return (heads / math.sqrt(self._width)).contiguous()


class LeanConvolution(nn.Module):
    """`ConformerConvolution`: its pointwise convolutions are linear layers, and its batch norm is part of the depthwise
    convolution. Frames stay rows, so nothing is transposed."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        require(type(stock) is ConformerConvolution, "the convolution module is another one")
        require(type(stock.batch_norm) is nn.BatchNorm1d and stock.batch_norm.track_running_stats, "there is no batch norm")
        require(stock.pointwise_activation == "glu_", "the activation is not a gated linear unit")
        depthwise = stock.depthwise_conv
        self._padding = int(depthwise._left_padding)
        require(depthwise._right_padding == self._padding, "the convolution is not symmetrical")
        self.linear_in, self.linear_out = _as_linear(stock.pointwise_conv1), _as_linear(stock.pointwise_conv2)
        weight, bias = _with_norm_folded(depthwise, stock.batch_norm)
        self.weight, self.bias = _parameter(weight.unsqueeze(2)), _parameter(bias)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, cache: None = None) -> Tensor:
        """`x`: [windows, frames, features]. `pad_mask`: true for padding, [windows, frames]."""
        x = F.glu(self.linear_in(x), dim=-1)
        if pad_mask is not None:
            x.masked_fill_(pad_mask.unsqueeze(-1), 0.0)
        x = x.transpose(1, 2).unsqueeze(2)  # as an image of one line: channels-last as it stands
        if x.is_cuda:
            x = x.contiguous()  # PyTorch's depthwise kernel for CUDA takes no other layout
        x = F.conv2d(x, self.weight, self.bias, padding=(0, self._padding), groups=len(self.weight))
        output: Tensor = self.linear_out(F.silu(x, inplace=True).squeeze(2).transpose(1, 2))
        return output


class LeanSubsampling(nn.Module):
    """`ConvSubsampling` by depthwise striding convolutions: channels last, pointwise convolutions as linear layers, and masks
    only where a convolution would mix padding into a window."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        require(type(stock) is ConvSubsampling and stock._subsampling == "dw_striding", "the subsampling is another one")
        require(not stock.is_causal, "the subsampling is causal")
        first, *rest = (layer for layer in stock.conv if isinstance(layer, nn.Conv2d))
        strided = [first, *rest[0::2]]
        require(all(c.kernel_size == (3, 3) and c.stride == (2, 2) and c.padding == (1, 1) for c in strided), "not 3 x 3 by 2")
        activations = [layer for layer in stock.conv if not isinstance(layer, nn.Conv2d)]
        require(all(isinstance(layer, nn.ReLU) for layer in activations), "the activation is not ReLU")
        self.first, *depthwise = (copy.deepcopy(c).to(memory_format=torch.channels_last) for c in strided)  # type: ignore[call-overload]
        self.depthwise = nn.ModuleList(depthwise)
        self.pointwise = nn.ModuleList(map(_as_linear, rest[1::2]))
        # NeMo flattens [channels, features]; with channels last it is [features, channels].
        by_channel = stock.out.weight.unflatten(1, (first.out_channels, -1))
        self.out = linear(by_channel.transpose(1, 2).flatten(1), stock.out.bias)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`x`: [windows, frames, features]; `lengths`: frames of each window. So is the result, with a frame for every eight."""
        x = F.relu(self.first(zero_padding(x, lengths).unsqueeze(3).permute(0, 3, 1, 2)), inplace=True).permute(0, 2, 3, 1)
        lengths = _halved(lengths)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = depthwise(zero_padding(x, lengths).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x, lengths = F.relu(pointwise(x), inplace=True), _halved(lengths)
        return self.out(x.flatten(2)), lengths


class PackedLinear(nn.Module):
    """`Linear` on a CPU by oneDNN's kernel, its weight laid out for it once. PyTorch takes MKL's for fp32, which is slow on
    processors of other makers than Intel."""

    def __init__(self, stock: nn.Linear) -> None:
        super().__init__()
        # Not documented, but what PyTorch's own compiler makes of a linear layer.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(stock.weight.detach())
        self._bias = stock.bias

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [..., features]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return output


def int8_linear(stock: nn.Linear) -> nn.Module:
    """`Linear` with int8 weights, scaled by row; its input is quantised with every batch, its output is fp32."""
    with warnings.catch_warnings():
        # PyTorch has announced that this will move to a package of its own.
        warnings.simplefilter("ignore")
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        quantised: nn.Sequential = quantize_dynamic(  # type: ignore[no-untyped-call]
            nn.Sequential(stock), {nn.Linear: per_channel_dynamic_qconfig}
        )
    return quantised[0]


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention, [windows, heads, frames, width]. The scores by content are never stored."""
    # Not in place: the kernels need rows that are aligned.
    bias = bias.contiguous() if hidden is None else bias.masked_fill(hidden, MASKED)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, hidden: Tensor | None) -> Tensor:
    """The same, which takes a CPU less time than the fused kernel does."""
    bias = bias.contiguous()
    if hidden is not None and hidden.any():
        bias.masked_fill_(hidden, MASKED)
    scores = bias.flatten(0, 1).baddbmm_(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=q.size(-1) ** -0.5)
    return torch.bmm(torch.softmax(scores, dim=-1), v.flatten(0, 1)).view_as(q)


def _shifted(by_position: Tensor, windows: int, frames: int) -> Tensor:
    """A view [windows, heads, frames, frames] of scores [heads, windows * frames, 2 frames - 1]. Column j of row i is the score
    of relative position j - i, from column frames - 1 + j - i: each row starts one column before the row above it."""
    heads, _, columns = by_position.shape
    strides = (frames * columns, windows * frames * columns, columns - 1, 1)
    return by_position.as_strided((windows, heads, frames, frames), strides, frames - 1)


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """`x`, [windows, frames, ...], with its padding set to zero, in place. On a CPU, reading `lengths` costs nothing."""
    shortest, frames = 0 if x.is_cuda else int(lengths.min()), x.size(1)
    if shortest < frames:
        is_padding = torch.arange(shortest, frames, device=x.device) >= lengths.unsqueeze(1)
        x[:, shortest:].masked_fill_(is_padding.view(*is_padding.shape, *[1] * (x.dim() - 2)), 0.0)
    return x


def _halved(lengths: Tensor) -> Tensor:
    """Frames after a convolution of 3 frames with stride 2 and a padding of 1."""
    return torch.div(lengths - 1, 2, rounding_mode="floor") + 1


def _with_norm_folded(convolution: nn.Conv1d, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what both do. In float64, so that they are rounded only once."""
    weight = convolution.weight.double()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    offset = -norm.running_mean.double() if convolution.bias is None else convolution.bias.double() - norm.running_mean.double()
    bias = norm.bias.double() + offset * scale
    return (weight * scale[:, None, None]).to(convolution.weight.dtype), bias.to(convolution.weight.dtype)


def _as_linear(convolution: Any) -> nn.Linear:
    return linear(convolution.weight.flatten(1), convolution.bias)


def _joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weights: list[Tensor] = [layer.weight for layer in layers]
    return linear(torch.cat(weights), torch.cat(biases) if biases else None)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None, device="meta")
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)


def require(is_met: bool, reason: str) -> None:
    if not is_met:
        raise Unsuitable(reason)
