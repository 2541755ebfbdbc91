"""An inner optimizer's state when the coordinates in which it moves are rescaled."""

import torch
from torch import Tensor

# Each scales with a power of its coordinate: what averages gradients with -1, what averages their squares with -2.
_POWERS = {
    "momentum_buffer": -1,
    "exp_avg": -1,
    "exp_avg_sq": -2,
    "max_exp_avg_sq": -2,
    "exp_inf": -1,
    "square_avg": -2,
    "grad_avg": -1,
    "sum": -2,
    "acc_delta": 2,
    "mu_product": 0,
    "prev": -1,
    "ax": 1,
    "mu": 0,
    "eta": 0,
    "step": 0,
    "step_size": 1,
}

# By which argument of the optimizer state begins that does not begin at zero.
_FIRST = {"sum": "initial_accumulator_value", "step_size": "lr"}


def check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where it is not known how the state of `optimizer` changes when coordinates are rescaled."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and _power(name, state) is None:
                raise ValueError(
                    f"it is not known how {name!r} of {type(optimizer).__name__} changes where weights are rescaled: "
                    "use one of torch's optimizers."
                )


def rescale_state(optimizer: torch.optim.Optimizer, parameter: Tensor, factor: Tensor | float) -> None:
    """Carry the state of `parameter` along, which was multiplied by `factor`, broadcastable to its shape."""
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        power = _power(name, state)
        if not isinstance(value, Tensor) or not power:
            continue
        if power > 0:
            value.mul_(factor**power)
        else:
            value.div_(factor if power == -1 else factor**-power)


def clear_state(optimizer: torch.optim.Optimizer, parameter: Tensor, entries: tuple[Tensor, ...]) -> None:
    """Let the state of single entries of `parameter` begin anew."""
    for name, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[entries] = _first(optimizer, parameter, name)


def replace_state(optimizer: torch.optim.Optimizer, parameter: Tensor, kept: Tensor, factor: Tensor) -> None:
    """Give the state of a vector `parameter` another length.

    Entry i of the new state is that of entry kept[i] of the old, whose coordinate was multiplied by factor[i]; where
    kept[i] is -1, it begins anew.
    """
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            carried = torch.cat([value, value.new_zeros(1)])[kept] * factor ** (_power(name, state) or 0)
            state[name] = torch.where(kept >= 0, carried, _first(optimizer, parameter, name))


def _power(name: str, state: dict) -> int | None:
    # RMSprop's momentum is of gradients divided by the root of their mean square.
    return 0 if name == "momentum_buffer" and "square_avg" in state else _POWERS.get(name)


def _first(optimizer: torch.optim.Optimizer, parameter: Tensor, name: str) -> float:
    (group,) = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
    return float(group.get(_FIRST.get(name), 0))
