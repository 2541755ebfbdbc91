"""The base net: what a user may pass as one, and the one that is trained where none is passed.

A parameter `net` and training data enter; a trained module leaves.
"""

import copy

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import validate_data
from skorch import NeuralNet
from torch import nn

from ._callbacks import CallbacksMixin
from ._net_classifier import NetClassifier
from ._rows import as_array, check_numeric, check_sample_shape
from .gradients import packed
from .gradients._user import called
from .modules import MLP


class BaseNetMixin(CallbacksMixin):
    """Data, clones, pickles and tags of an estimator with a parameter `net`; to the left of scikit-learn's classes."""

    _trains_in_double = False  # the net of net=None, on rows in double precision

    def _fit_net(self, X, y=None, sample_weight=None) -> tuple[np.ndarray, np.ndarray | None]:
        """Take or train the net, and return rows and labels as arrays."""
        X, y = as_array(X), as_array(y)
        if y is None:
            X = validate_data(self, X, dtype="numeric", allow_nd=True)
        else:
            shape = np.asarray(y).shape
            of_outputs = len(shape) == 2 and shape[1] > 1  # targets of a regression net
            X, y = validate_data(self, X, y, dtype="numeric", allow_nd=True, multi_output=of_outputs)
        X = check_numeric(X)
        self.sample_shape_ = X.shape[1:]
        if self.net is None and y is not None:
            double = self._trains_in_double and X.dtype == np.float64
            classifier = NetClassifier(
                MLP,
                classes=getattr(self, "classes", None),
                random_state=self.random_state,
                device=self.device or "cpu",
            )
            self.module_ = classifier.fit(X if double else X.astype(np.float32), y, sample_weight).module_
        else:
            self.module_ = resolve_net(self.net, X, y)
        return X, y

    def _validated(self, X) -> np.ndarray:
        """Return rows as an array, of samples like those of `fit`."""
        X = as_array(X)
        check_sample_shape(X, self.sample_shape_)
        X = check_numeric(validate_data(self, X, dtype="numeric", allow_nd=True, reset=False))
        if X.shape[1:] != self.sample_shape_:
            raise ValueError(f"X has samples of shape {X.shape[1:]}; the net was fitted to {self.sample_shape_}.")
        return X

    def __sklearn_clone__(self):
        # scikit-learn's clone would drop the weights of a fitted skorch net and copy those of a module.
        params = self.get_params(deep=False)
        net = params.pop("net")
        shared = net if trained_module(net) is not None else clone(net, safe=False)
        twin = type(self)(net=shared, **{name: clone(value, safe=False) for name, value in params.items()})
        for name in ("_metadata_request", "_sklearn_output_config"):
            if hasattr(self, name):
                setattr(twin, name, copy.deepcopy(getattr(self, name)))
        if hasattr(self, "_skl_callbacks"):
            twin._skl_callbacks = self._skl_callbacks  # of which scikit-learn's clone has the same ones, too
        return twin

    def __copy__(self):
        # Python would copy what is pickled, the stand-in of the net.
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __getstate__(self) -> dict:
        # Of a skorch net the module travels alone; what trained it is not needed, and would not be hashed alike.
        state: dict = super().__getstate__()
        modules = {name: trained_module(value) for name, value in state.items()}
        return state | {name: packed(module) for name, module in modules.items() if module is not None}

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = tags.target_tags.required or trained_module(self.net) is None
        tags.input_tags.three_d_array = True
        return tags


def trained_module(net) -> nn.Module | None:
    """Return the trained module that `net` is or holds, or None if it holds none."""
    net = net.estimator if isinstance(net, FrozenEstimator) else net
    module = getattr(net, "module_", None) if isinstance(net, NeuralNet) else net
    module = getattr(module, "_orig_mod", module)  # of a compiled one
    return module if isinstance(module, nn.Module) else None


def resolve_net(net, X: np.ndarray, y: np.ndarray | None) -> nn.Module:
    """Return the trained module for the parameter `net`; a callable trains it on (X, y)."""
    if isinstance(net, type):
        raise TypeError(f"net is the class {net.__name__}: pass a trained instance of it.")
    module = trained_module(net)
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("net is a ScriptModule, whose layers cannot be looked into: pass the module it was made from.")
    if module is not None:
        check_returns_logits(net)
        return module
    if isinstance(net, FrozenEstimator) and not isinstance(net.estimator, NeuralNet):
        raise TypeError(f"net must hold a torch Module or a skorch net, not a {type(net.estimator).__name__}.")
    if isinstance(net, (NeuralNet, FrozenEstimator)):
        raise NotFittedError(
            "net is a skorch net that is not fitted: fit it first and pass it, its .module_, or "
            "sklearn.frozen.FrozenEstimator(net)."
        )
    if net is not None and not callable(net):
        raise TypeError(
            f"net must be a torch Module, a fitted skorch net, a callable net(X, y) or None, not {type(net).__name__}."
        )
    if y is None:
        raise ValueError("without a trained net the estimator requires y to be passed, but the target y is None.")
    returned = called("net", net, X.astype(np.float32) if X.dtype == np.float64 else X, y)
    module = trained_module(returned)
    if module is None:
        raise TypeError("the callable net(X, y) must return a torch Module or a fitted skorch net.")
    check_returns_logits(returned)
    return module


def check_returns_logits(net) -> None:
    """Raise ValueError for a skorch net whose criterion takes probabilities."""
    net = net.estimator if isinstance(net, FrozenEstimator) else net
    if isinstance(net, NeuralNet) and isinstance(net.criterion_, nn.NLLLoss):
        raise ValueError(
            "net is a skorch net with the criterion NLLLoss, so its module returns probabilities; features are "
            "gradients of the cross-entropy of logits. Leave the softmax out, and train with CrossEntropyLoss."
        )
