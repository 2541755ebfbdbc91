"""Fine-tuning of chosen entries: a net is trained on, but for what a mask leaves out.

A trained net, data and a mask enter; a new net leaves. What the optimizer sees, and has state for, is the vector of the
chosen entries alone.
"""

from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
from sklearn.utils import check_X_y
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from ._base_net import as_array, check_returns_logits
from ._net_classifier import NetClassifier
from ._net_labels import class_codes
from ._prune import checked_mask, mask_weights, module_of
from ._rows import RowDataset, check_numeric
from .gradients import as_table, check_device, check_finite, guard_group_norms, own_copy, two_logits


def finetune(
    net,
    X,
    y,
    mask,
    *,
    classes=None,
    lr=1e-3,
    max_epochs=5,
    batch_size=64,
    optimizer=torch.optim.Adam,
    update_statistics=False,
    net_output=None,
    device=None,
    random_state=None,
    verbose=0,
    **kwargs,
) -> nn.Module:
    """Return a copy of a net in which the chosen entries were trained further, by cross-entropy.

    Parameters
    ----------
    net : Module or fitted skorch net
        The net, which returns logits. It is not changed. It may be pruned: ``finetune(prune(net, mask), X, y, mask)``.
    X : array-like of shape (n_samples, ...)
        Samples as the net takes them.
    y : array-like of shape (n_samples,)
        Class labels: those that a skorch net knows, as many as the net has outputs, or numbers from 0 on.
    mask : dict of str to bool array or Tensor of the parameter's shape
        Which entries to train, as of :meth:`EdgeImportance.mask`, of frozen parameters as well. Parameters that it
        leaves out are not trained.
    classes : array-like of shape (n_outputs,), optional
        Labels of the net's outputs, in their order, as of :class:`EdgeImportance`.
    lr : float, default=1e-3
        Learning rate.
    max_epochs : int, default=5
        Number of passes over the data.
    batch_size : int, default=64
        Rows of a step.
    optimizer : Optimizer class, default=Adam
        Any of torch's. Its state is that of the chosen entries.
    update_statistics : bool, default=False
        Whether normalisation layers normalise by the batch and go on averaging their statistics.
    net_output : callable, optional
        Picks the logits from what the net returns, where that is a tuple or the like.
    device : str or device, optional
        Where to train; by default where the net is, where the result is in any case.
    random_state : int, RandomState or None, default=None
        Seed of the order of rows, and of dropout. Global random states are left alone.
    verbose : int, default=0
        Whether to print the epochs' losses.
    **kwargs : dict
        All else that a skorch net takes, such as ``optimizer__momentum=0.9`` or ``callbacks=[...]``.

    Returns
    -------
    tuned : Module
        A new net of the same kind, equal to `net` but for the chosen entries.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace import finetune
    >>> net, X = torch.nn.Linear(2, 2), torch.randn(8, 2)
    >>> mask = {"weight": torch.tensor([[True, False], [False, False]])}
    >>> tuned = finetune(net, X, [0, 1] * 4, mask, random_state=0)
    >>> (tuned.weight != net.weight).tolist()
    [[True, False], [False, False]]
    """
    check_device(device)
    if net_output is not None and not callable(net_output):
        raise TypeError(f"net_output={net_output!r} is neither None nor a function that takes what the net returns.")
    if not isinstance(update_statistics, (Integral, np.bool_)):
        raise ValueError(f"update_statistics={update_statistics!r} is neither True nor False.")
    fixed = {"module", "class_weight", "dataset"} & kwargs.keys()
    if fixed:
        raise TypeError(f"finetune takes no {', '.join(sorted(fixed))}; criterion__weight=tensor(...) weighs classes.")
    tuned = own_copy(module_of(net))
    check_returns_logits(net)
    mask = {name: entries for name, entries in checked_mask(tuned, mask).items() if entries.any()}
    if not mask:
        raise ValueError("mask chooses no entry of any parameter: at least one has to be True.")
    home = tuned.get_parameter(next(iter(mask))).device
    X, y = check_X_y(as_array(X), as_array(y), dtype="numeric", allow_nd=True, estimator="finetune")
    X = check_numeric(X)
    device = home if device is None else torch.device(device)
    mask = {name: entries.to(device) for name, entries in mask.items()}
    chosen = ChosenEntries(tuned.to(device), mask, net_output, bool(update_statistics))
    X, n_labels = _as_taken(chosen, X)
    trainer = _Trainer(
        chosen,
        classes=np.arange(n_labels),
        optimizer=optimizer,
        lr=lr,
        max_epochs=max_epochs,
        batch_size=batch_size,
        device=device,
        verbose=verbose,
        random_state=random_state,
        **kwargs,
    )
    codes = class_codes(net, n_labels, y, classes)[1]
    trainer.fit(RowDataset(X, codes))
    return chosen.finished().to(home)


def _as_taken(chosen: "ChosenEntries", X: np.ndarray) -> tuple[np.ndarray, int]:  # type: ignore[return]
    """Return rows as the net takes them, as floats or else as indices, and the number of its labels."""
    dtypes = [X.dtype if X.dtype.kind == "f" else np.float64, *([np.int64] if X.dtype.kind in "iu" else [])]
    for dtype in dtypes:
        try:
            return X.astype(dtype, copy=False), chosen.n_labels(X[:1].astype(dtype))
        except (RuntimeError, IndexError) as error:
            if dtype == dtypes[-1]:
                raise ValueError(
                    f"net cannot compute samples of shape {X.shape[1:]}: {' '.join(str(error).split())}. Give it "
                    "samples of the shape it was made for."
                ) from error


class ChosenEntries(nn.Module):
    """A net as a function of some entries of its parameters, the only ones that are trained.

    Parameters
    ----------
    net : Module
        Its own; parameters are frozen, and written to by `finished`.
    mask : dict of str to Tensor of bool
        Which entries of which parameters.
    output : callable, optional
        Picks the logits from what the net returns.
    update_statistics : bool, default=False
        Whether normalisation layers are in training mode with the net.
    """

    def __init__(
        self,
        net: nn.Module,
        mask: dict[str, Tensor],
        output: Callable | None = None,
        update_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.update_statistics = update_statistics
        self._required = {name: p.requires_grad for name, p in net.named_parameters()}
        self._modes = [module.training for module in net.modules()]
        self.net, self.output = net.requires_grad_(False), output
        self._guards = guard_group_norms(net)
        self.places = {name: entries.flatten().nonzero().flatten() for name, entries in mask.items()}
        start = [net.get_parameter(name).flatten()[places] for name, places in self.places.items()]
        self.entries = nn.Parameter(torch.cat(start))

    def train(self, mode: bool = True) -> "ChosenEntries":
        """Switch to training; normalisation layers only if their statistics are to be updated."""
        super().train(mode)
        for layer in self.net.modules():
            if isinstance(layer, _NormBase) and layer.track_running_stats and not self.update_statistics:
                layer.eval()
        return self

    def parameters_now(self) -> dict[str, Tensor]:
        """Return the whole parameters, which depend on the chosen entries."""
        parts = self.entries.split([len(places) for places in self.places.values()])
        found = {}
        for (name, places), part in zip(self.places.items(), parts):
            whole = self.net.get_parameter(name)
            found[name] = whole.flatten().index_copy(0, places, part).view(whole.shape)
        return found

    def forward(self, X: Tensor) -> Tensor:
        """Return logits of shape (n, n_classes), two where the net has one for the second of two labels."""
        returned = functional_call(self.net, self.parameters_now(), (X,))
        return two_logits(as_table(returned if self.output is None else self.output(returned), len(X)))

    @torch.no_grad()
    def n_labels(self, X: np.ndarray) -> int:
        """Return the number of logits of a row."""
        rows = torch.tensor(X, device=self.entries.device)
        return check_finite(self.eval()(rows.to(self.entries.dtype) if rows.is_floating_point() else rows)).shape[1]

    @torch.no_grad()
    def finished(self) -> nn.Module:
        """Return the net with the entries as they are now, and with its own modes and flags."""
        for name, value in self.parameters_now().items():
            self.net.get_parameter(name).copy_(value)
        for guard in self._guards:
            guard.remove()
        for module, mode in zip(self.net.modules(), self._modes):
            module.training = mode
        mask_weights(self.net)
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(self._required[name])
        return self.net


class _Trainer(NetClassifier):
    """Trains a module as it is, in its own precision and from where it is."""

    def initialize_module(self):
        """Take the module."""
        self.module_ = self.module
        return self
