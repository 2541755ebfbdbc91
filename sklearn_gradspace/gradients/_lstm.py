"""LSTM layers, which a CPU computes in one step of differentiation that does not tell what is inside.

A net enters; its LSTM layers are made to compute time by time, as other recurrent layers do.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def unfold_lstms(module: nn.Module) -> None:
    """Have LSTM layers with parameters that are differentiated compute by `torch.lstm_cell`.

    Parameters
    ----------
    module : Module
        A copy, whose layers may be changed.
    """
    for layer in module.modules():
        # Those with projections are computed time by time anyway.
        if type(layer) is nn.LSTM and not layer.proj_size and any(p.requires_grad for p in layer.parameters()):
            layer.__class__ = _Unfolded


class _Unfolded(nn.LSTM):
    """The layer in evaluation mode, on sequences of the same length that are on a CPU."""

    def forward(self, input, hx=None):
        if isinstance(input, PackedSequence) or input.ndim != 3 or input.device.type != "cpu":
            return super().forward(input, hx)
        steps = list(input.unbind(1 if self.batch_first else 0))
        ways = 2 if self.bidirectional else 1
        if hx is None:
            hx = (steps[0].new_zeros(self.num_layers * ways, len(steps[0]), self.hidden_size),) * 2
        states: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.num_layers):
            found = []
            for way in range(ways):
                i = layer * ways + way
                weights = [getattr(self, name) for name in self._all_weights[i]]
                state, outputs = (hx[0][i], hx[1][i]), list[Tensor]()
                for step in steps[::-1] if way else steps:
                    state = torch.lstm_cell(step, state, *weights)
                    outputs.append(state[0])
                found.append(outputs[::-1] if way else outputs)
                states.append(state)
            steps = [torch.cat(of_ways, -1) for of_ways in zip(*found)] if ways == 2 else found[0]
        h, c = (torch.stack(of_all) for of_all in zip(*states))
        return torch.stack(steps, 1 if self.batch_first else 0), (h, c)
