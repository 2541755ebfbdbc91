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
from ._forward import ForwardPass, captured
from ._rules import RULES, choose_rules
from ._sharing import packed, shared_copy

_PROBE_ROWS = 4


class GradientEngine:
    """Per-sample gradients of the cross-entropy of a net in evaluation mode.

    Parameters
    ----------
    net : Module
        Trained net, from (n, ...) to logits of shape (n, n_labels). It is shared and never changed.
    sample : ndarray of shape (n, ...)
        Rows of data, the first few of which decide on the rules.
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
        self._attach()
        self.n_labels, self.rules = self._try_out(sample[:_PROBE_ROWS])

    def _attach(self) -> None:
        self.module = shared_copy(self.net, self._target)
        first = self.module.get_parameter(self.blocks[0].name)
        self.device, self.dtype = first.device, first.dtype
        self._layers = {block.layer: self.module.get_submodule(block.layer) for block in self.blocks}

    def __getstate__(self) -> dict:
        state = {key: value for key, value in vars(self).items() if key not in ("module", "_layers")}
        return state | {"net": packed(self.net)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._attach()

    def fork(self) -> "GradientEngine":
        """Return an engine on the same net for another thread."""
        twin = object.__new__(GradientEngine)
        twin.__setstate__(vars(self))
        return twin

    @property
    def feature_dtype(self) -> torch.dtype:
        """The precision of the gradients: the net's, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @torch.no_grad()
    def logits(self, X: np.ndarray) -> Tensor:
        """Return the net's output of shape (n, n_labels) for the rows `X`."""
        return _checked(self.module(self._inputs(X)), len(X))

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
        forward = self._forward(X, labels)
        n, k = forward.cotangents.shape[:2]
        gradients = torch.empty(n, k, self.n_params, dtype=self.feature_dtype, device=self.device)
        with torch.no_grad():
            for name in dict.fromkeys(rule.rule for rule in self.rules):
                found = RULES[name](forward, [rule.name for rule in self.rules if rule.rule == name])
                for block in self.blocks:
                    if block.name in found:
                        gradients[..., block.slice] = found[block.name].flatten(2)
        return gradients if labels is None else gradients[:, 0]

    def _inputs(self, X: np.ndarray) -> Tensor:
        return torch.tensor(X, dtype=self.dtype, device=self.device)

    def _forward(self, X: np.ndarray, labels: Tensor | None) -> ForwardPass:
        inputs = self._inputs(X)
        with captured(self._layers) as calls:
            logits = _checked(self.module(inputs), len(X))
        return ForwardPass(self.module, inputs, logits, calls, _cross_entropy_cotangents(logits.detach(), labels))

    def _try_out(self, X: np.ndarray):
        """Return the number of labels and the rules, found on a few rows."""
        for name, layer in self.module.named_modules():
            if isinstance(layer, _BatchNorm) and layer.running_mean is None:
                raise ValueError(
                    f"layer {name!r} mixes the rows of a batch: {type(layer).__name__} without running statistics. "
                    "Train it with track_running_stats=True."
                )
        try:
            logits = self.logits(X)
        except ValueError:
            raise
        except Exception as error:  # whatever a user's forward may raise
            way_out = " Give it samples of the shape it was made for."
            if self.dtype in (torch.float16, torch.bfloat16):
                way_out = " Where the device lacks this precision, call net.float() or choose another device."
            raise ValueError(
                f"net cannot compute samples of shape {X.shape[1:]} in {self.dtype} on {self.device}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}.{way_out}"
            ) from error
        difference = (self.logits(X[:1]) - logits[:1]).abs().max()
        if difference > 1e3 * torch.finfo(self.dtype).eps * logits.abs().max():
            raise ValueError(
                f"net mixes the rows of a batch: the logits of a row differ by {difference:.2g} when it comes alone. "
                "Features need a net that is a function of each row by itself."
            )
        labels = torch.arange(len(X), device=self.device) % logits.shape[1]
        return logits.shape[1], choose_rules(self._forward(X, labels), [block.name for block in self.blocks])


def _cross_entropy_cotangents(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return d CE / d logits = p - e_c, of shape (n, 1, n_labels), or (n, n_labels, n_labels) for all labels c."""
    n_labels = logits.shape[1]
    probabilities = logits.softmax(1)
    # 1 - p_c as the sum of the others: where the net is sure of c, the difference would be rounding error.
    others = probabilities @ (1 - torch.eye(n_labels, dtype=logits.dtype, device=logits.device))
    if labels is None:
        cotangents = probabilities.unsqueeze(1).repeat(1, n_labels, 1)
        cotangents.diagonal(dim1=1, dim2=2).copy_(-others)
        return cotangents
    labels = labels.to(logits.device).unsqueeze(1)
    return probabilities.scatter(1, labels, -others.gather(1, labels)).unsqueeze(1)


def _checked(logits: object, n: int) -> Tensor:
    """Return the net's output if it is a table of finite logits; say what is wrong otherwise."""
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        raise ValueError(
            f"net must return logits of shape (n_samples, n_classes), at least two classes; for {n} samples it "
            f"returned {shape}. Wrap it in a module whose forward returns logits, two columns for two classes."
        )
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"net returns NaN or infinity for rows {rows[:10]} of the batch: its gradients mean nothing.")
    return logits
