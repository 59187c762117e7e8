"""The LSTM of a transducer's prediction network, for one token at a time on a CPU."""

import torch
from torch import Tensor, nn

from serve_app.engine.lean_modules import PackedLinear, linear, require

State = tuple[Tensor, Tensor]
"""Outputs and cells, each [layers, windows, features]."""


class LeanLSTM(nn.Module):
    """`nn.LSTM`: a single step is one packed linear layer for each of its layers. PyTorch has oneDNN lay out the weights anew in
    every call, which takes longer than a step. Sequences are left to it."""

    def __init__(self, stock: nn.LSTM) -> None:
        """Raises Unsuitable for a recurrent network of another kind."""
        super().__init__()
        require(type(stock) is nn.LSTM, "the prediction network has no LSTM")
        require(stock.bias and not stock.bidirectional and not stock.batch_first, "the LSTM is of another kind")
        require(stock.proj_size == 0, "the LSTM has projections")
        self._stock, self._width = stock, stock.hidden_size
        self._gates = nn.ModuleList(PackedLinear(_gates(stock, layer)) for layer in range(stock.num_layers))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """`x`: [tokens, windows, features]. Returns the outputs of the last layer and the state after the last token."""
        if state is None or len(x) != 1:
            result: tuple[Tensor, State] = self._stock(x, state)
            return result
        output, outputs, cells = x[0], [], []
        for gates, before, cell in zip(self._gates, *state, strict=True):
            sums = gates(torch.cat((output, before), dim=1))
            input_gate, forget_gate, output_gate = sums[:, : 3 * self._width].sigmoid_().chunk(3, dim=1)
            cell = torch.addcmul(forget_gate * cell, input_gate, sums[:, 3 * self._width :].tanh_())
            output = output_gate * cell.tanh()
            outputs.append(output)
            cells.append(cell)
        return output.unsqueeze(0), (torch.stack(outputs), torch.stack(cells))


def _gates(stock: nn.LSTM, layer: int) -> nn.Linear:
    """Input and previous output to the sums of the gates: input, forget, output, and the candidate that PyTorch has third."""
    weights, biases = [], []
    for source in ("ih", "hh"):
        weights.append(_candidate_last(getattr(stock, f"weight_{source}_l{layer}")))
        biases.append(_candidate_last(getattr(stock, f"bias_{source}_l{layer}")))
    return linear(torch.cat(weights, dim=1), biases[0] + biases[1])


def _candidate_last(rows: Tensor) -> Tensor:
    input_gate, forget_gate, candidate, output_gate = rows.chunk(4)
    return torch.cat((input_gate, forget_gate, output_gate, candidate))
