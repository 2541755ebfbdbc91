"""The engine: per-sample gradients of the loss, for one candidate label or for all of them.

A net and a batch enter; gradients of shape (n, n_params) or (n, n_labels, n_params) leave. One forward pass serves all
labels; one backward pass a label goes to the outputs of the layers only, and a rule for each layer turns what arrives
there into the gradients of its parameters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._blocks import choose_parameters, make_blocks
from ._forward import ForwardPass, forward_pass
from ._logits import checked_logits
from ._rules import RULES, ParameterRule, choose_rules, loop
from ._sharing import packed, shared_copy, usable

_PROBE_ROWS = 4


class GradientEngine:
    """Per-sample gradients of the cross-entropy of a net in evaluation mode.

    Parameters
    ----------
    net : Module
        Trained net, from (n, ...) to logits of shape (n, n_labels). It is shared and never changed.
    sample : ndarray of shape (n, ...)
        Rows of data, a few of which decide on the rules.
    layers : str or sequence of str
        Which parameters; see :func:`choose_parameters`.
    device : device, optional
        Where to compute; by default where the net is.

    Attributes
    ----------
    blocks : tuple of Block
        Which columns of a gradient belong to which parameter.
    n_labels, n_params : int
        Number of candidate labels and of gradient entries for each.
    rules : tuple of ParameterRule
        How the gradients of each parameter are computed, and why so.
    """

    def __init__(
        self,
        net: nn.Module,
        sample: np.ndarray,
        layers: str | Sequence[str] = "weights",
        device: torch.device | str | None = None,
    ) -> None:
        self.net, self._target = net, device
        self.blocks = make_blocks(choose_parameters(net, layers))
        self.n_params = sum(block.size for block in self.blocks)
        self._layers = list(dict.fromkeys(block.layer for block in self.blocks))
        self._attach()
        self._input_dtype = self.dtype
        spread = np.linspace(0, len(sample) - 1, min(_PROBE_ROWS, len(sample)), dtype=int)
        self.n_labels, self.rules, self._signature = self._try_out(sample[spread])

    def _attach(self) -> None:
        self.module = shared_copy(self.net, self._target)
        first = self.module.get_parameter(self.blocks[0].name)
        self.device, self.dtype = first.device, first.dtype

    def __getstate__(self) -> dict:
        state = {key: value for key, value in vars(self).items() if key != "module"}
        return state | {"net": packed(self.net)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._target = None if self._target is None else usable(self._target)
        self._attach()

    def fork(self) -> "GradientEngine":
        """Return an engine on the same net for another thread."""
        twin = object.__new__(GradientEngine)
        vars(twin).update(vars(self), module=shared_copy(self.module))
        return twin

    @property
    def feature_dtype(self) -> torch.dtype:
        """The precision of the gradients: the net's, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @torch.no_grad()
    def logits(self, X: np.ndarray) -> Tensor:
        """Return the net's output of shape (n, n_labels) for the rows `X`."""
        return checked_logits(self.module(self._inputs(X)), len(X))

    def __call__(self, X: np.ndarray, labels: Tensor | None = None) -> Tensor:
        """Compute the gradients of the rows `X`.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
        labels : Tensor of shape (n,), optional
            One candidate label a row; by default all labels.

        Returns
        -------
        Tensor of shape (n, n_params) or (n, n_labels, n_params)
            The gradients ``d CE(f_w(x), c) / d w``, on the engine's device.
        """
        with torch.inference_mode(False):
            forward = forward_pass(self.module, self._layers, self._inputs(X), labels)
            n, k = forward.cotangents.shape[:2]
            gradients = torch.empty(n, k, self.n_params, dtype=self.feature_dtype, device=self.device)
            rules = {rule.name: rule.rule for rule in self.rules}
            if forward.signature != self._signature:
                # These rows took another way through the net than those that the rules were tried out on.
                rules = dict.fromkeys(rules, loop.__name__)
            for rule in dict.fromkeys(rules.values()):
                names = [name for name in rules if rules[name] == rule]
                with torch.no_grad():
                    found = RULES[rule](forward, names)
                for block in self.blocks:
                    if block.name in names:
                        gradients[..., block.slice] = found[block.name].flatten(2) if block.name in found else 0
        return gradients if labels is None else gradients[:, 0]

    def _inputs(self, X: np.ndarray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(X), dtype=self._input_dtype, device=self.device)

    def _try_out(self, X: np.ndarray) -> tuple[int, tuple[ParameterRule, ...], tuple]:
        """Return the number of labels, the rules and the signature of a pass, found on a few rows."""
        for name, layer in self.module.named_modules():
            if isinstance(layer, _BatchNorm) and layer.running_mean is None:
                raise ValueError(
                    f"layer {name!r} mixes the rows of a batch: {type(layer).__name__} without running statistics. "
                    "Train it with track_running_stats=True."
                )
        logits = self._first_logits(X)
        n_labels = logits.shape[1]
        if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() <= 1e-3:
            raise ValueError(
                "net returns probabilities: its rows sum to one. Gradients are those of the cross-entropy of logits: "
                "leave the softmax out, or pass a module that returns the logarithm."
            )
        labels = torch.arange(len(X), device=self.device) % n_labels
        with torch.inference_mode(False):
            forward = self._precise_forward(X, labels)
            _check_independence(forward)
            return n_labels, choose_rules(forward, [block.name for block in self.blocks]), forward.signature

    def _first_logits(self, X: np.ndarray) -> Tensor:
        """Return the logits of the first rows, after finding out whether the net takes numbers or indices."""
        try:
            return self.logits(X)
        except ValueError:
            raise
        except Exception as error:  # whatever a user's forward may raise
            if X.dtype.kind in "iu" and self._input_dtype.is_floating_point:
                self._input_dtype = torch.int64
                return self._first_logits(X)
            way_out = f"Give it samples of the shape it was made for; they are cast to {self._input_dtype}."
            if self.dtype in (torch.float16, torch.bfloat16):
                way_out = "Where the device lacks this precision, call net.float() or choose another device."
            raise ValueError(
                f"net cannot compute samples of shape {X.shape[1:]} in {self.dtype} on {self.device}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}. {way_out}"
            ) from error

    def _precise_forward(self, X: np.ndarray, labels: Tensor) -> ForwardPass:
        """Return a pass in double precision, where rounding does not pass for error, if the net can be computed so."""
        try:
            precise = shared_copy(self.net, self._target).double()
            return forward_pass(precise, self._layers, _double(self._inputs(X)), labels)
        except (RuntimeError, TypeError):  # a net with a precision of its own inside, a device without this one
            return forward_pass(self.module, self._layers, self._inputs(X), labels)


def _double(inputs: Tensor) -> Tensor:
    return inputs.double() if inputs.is_floating_point() else inputs


@torch.no_grad()
def _check_independence(forward: ForwardPass) -> None:
    for row in {0, len(forward.inputs) - 1}:
        together, alone = forward.logits[row], forward.module(forward.inputs[row : row + 1].clone())[0]
        difference = (together - alone).abs().max()
        if difference > max(1e-6, 1e3 * torch.finfo(together.dtype).eps) * together.abs().max():
            raise ValueError(
                f"net mixes the rows of a batch, or is random: the logits of a row differ by {difference:.2g} when it "
                "comes alone. Features need a net that is a function of each row by itself."
            )
