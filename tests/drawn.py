"""Nets off their start: where all biases are zero and all statistics those of nothing, much is right by chance."""

import torch


def drawn(build, seed, scale=0.3):
    """Return what `build` makes, in double precision, its parameters and running statistics drawn as well."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = build().double()
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2)
    return net
