"""What makes a skorch net of any kind keep scikit-learn's contract.

`SklearnNetMixin` stands to the left of a skorch class. Each override says which habit of skorch it mends.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, signature
from threading import RLock
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ._module_checks import input_error
from ._rows import RowDataset, WeightedRows, whole_batch
from .gradients import check_device, to_device

# torch's random state is the process's: two threads that fit at a time would share it.
_random_state_lock = RLock()

_KEPT = ("dataset", "iterator_train", "iterator_valid", "optimizer")  # what parameters are for that a fit reads anew


class SklearnNetMixin:
    """Parameters, random state, batches and pickles of a skorch net, as scikit-learn has them."""

    # skorch sets these in __init__, where scikit-learn allows parameters only. As defaults of the class they are a
    # fitted net's alone. skorch registers components only while `initialized_` is missing: so they are registered here.
    history_ = None
    initialized_ = False
    virtual_params_: ClassVar[dict] = {}
    prefixes_: ClassVar[list[str]] = [
        "iterator_train",
        "iterator_valid",
        "callbacks",
        "dataset",
        "compile",
        "module",
        "criterion",
        "optimizer",
    ]
    cuda_dependent_attributes_: ClassVar[list[str]] = ["module_", "criterion_", "optimizer_"]
    _of_module: tuple[str, ...] = ()  # parameters that enter the module alone
    device: str | torch.device | None
    criterion_: Any
    _rng_states: list[Tensor]
    _modules, _criteria, _optimizers = ["module"], ["criterion"], ["optimizer"]

    def _drop_fitted_attributes(self) -> None:
        """To be called at the end of `__init__`."""
        for name in ("history_", "initialized_", "virtual_params_"):
            vars(self).pop(name, None)

    def _check_settable_attr(self, name: str, attr) -> None:
        if self.init_context_ is None and isinstance(attr, nn.Module):
            raise TypeError(f"{name}={attr} is a module: pass a function or a class that does the same.")
        super()._check_settable_attr(name, attr)

    def _get_param_names(self) -> list[str]:
        # skorch counts its private attributes as parameters.
        return [name for name in vars(self) if not (name.startswith("_") or name.endswith("_"))]

    @property
    def _optimizer_arguments(self) -> set[str]:
        """What is meant for the optimizer, as ``optimizer__...``."""
        return {*signature(self._optimizer_class).parameters} if callable(self._optimizer_class) else set()

    def _validate_params(self) -> None:
        # skorch does not say what a wrong name may have meant.
        known = {name for name in self._get_param_names() if name not in self._params_to_validate}
        for name in sorted(self._params_to_validate):
            if name.endswith("_") or any(name.startswith(prefix) for prefix in self.prefixes_):
                continue
            near = get_close_matches(name.partition("__")[0], sorted(known), 1)
            if name in self._optimizer_arguments:
                hint = f"it is the optimizer's: optimizer__{name}"
            else:
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"{type(self).__name__.lstrip('_')} has no parameter {name!r}; {hint}")
        super()._validate_params()

    __repr__ = BaseEstimator.__repr__  # skorch's shows the module alone

    def __init_subclass__(cls, **kwargs) -> None:
        # scikit-learn shows the parameters that differ from __init__'s signature, where skorch's are all **kwargs.
        super().__init_subclass__(**kwargs)
        init = cls.__init__
        if "__init__" not in vars(cls):
            if hasattr(init, "__signature__"):
                return
            # That of a mixin, which other nets share.
            cls.__init__ = wraps(init)(lambda *args, **kwargs: init(*args, **kwargs))  # type: ignore[method-assign]
        own = signature(cls.__init__).parameters
        cls.__signature__ = Signature([*own.values()][1:])  # as it is written, for help and documentation
        inherited = {
            name: parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for kind in reversed(cls.__mro__[1:])
            for name, parameter in signature(kind.__init__).parameters.items()
            if parameter.default is not Parameter.empty and name not in own
        }
        together = sorted([*own.values(), *inherited.values()], key=lambda parameter: parameter.kind)
        cls.__init__.__signature__ = Signature(together)

    def _get_params_html(self, deep=True, *args, **kwargs):
        return super()._get_params_html(False, *args, **kwargs)  # without those of skorch's own callbacks

    def set_params(self, **params):
        """Set parameters of the net, its module, criterion, optimizer and callbacks.

        Parameters
        ----------
        **params : dict
            Names as :meth:`get_params` gives them.

        Returns
        -------
        self : object
            The net.
        """
        if self.initialized_:
            # skorch would refuse these, or tell `optimizer__...` to the optimizer that is there, and forget them.
            kept = {name: value for name, value in params.items() if name.partition("__")[0] in _KEPT}
            kept = {name: value for name, value in kept.items() if not name.startswith("optimizer__param_groups")}
            told = {name: value for name, value in params.items() if name not in kept or name.startswith("optimizer__")}
            super().set_params(**told)
            vars(self).update(kept)
            self._params_to_validate.update(kept)
            self._validate_params()
            if "optimizer" in kept:
                self._initialize_optimizer(reason="Re-initializing optimizer because it was set.")
            return self
        callbacks = {name: value for name, value in params.items() if name.partition("__")[0] == "callbacks"}
        if not callbacks:
            return super().set_params(**params)
        # skorch would initialize callbacks now; they wait for `initialize`, which also refuses unknown names.
        super().set_params(**{name: value for name, value in params.items() if name not in callbacks})
        self._params_to_validate.update(callbacks.keys() - {"callbacks"})
        vars(self).update(callbacks)
        return self

    def initialize_callbacks(self):
        """Make the callbacks; refuse parameters of callbacks that do not exist, which skorch passes over.

        Returns
        -------
        self : object
            The net.
        """
        super().initialize_callbacks()
        known = {name for name, _ in self._uniquely_named_callbacks()}
        for name in vars(self):
            prefix, *rest = name.split("__")
            if prefix == "callbacks" and rest and rest[0] not in known:
                raise ValueError(f"Trying to set a parameter for callback {rest[0]} which does not exist.")
        return self

    def __delattr__(self, name: str) -> None:
        # skorch takes every attribute for a component to unregister.
        if name.startswith("_"):
            object.__delattr__(self, name)
        else:
            super().__delattr__(name)

    def __getstate__(self) -> dict:
        # skorch pickles modules to bytes at once, by a pickler that knows no class of __main__. It does so for the sake
        # of CUDA; on the CPU the modules travel like everything else.
        on_cpu = all(p.device.type == "cpu" for p in getattr(self, "module_", nn.Module()).parameters())
        state: dict = vars(self).copy() if on_cpu else super().__getstate__()  # type: ignore[assignment]
        state.pop("_report", None)  # of a fit that is going on
        return state

    def __setstate__(self, state: dict) -> None:
        if "__cuda_dependent_attributes__" not in state:
            vars(self).update(state)
            return
        device = state["device"]
        super().__setstate__(state | {"device": device or state.get("_data_device", "cpu")})
        if device is None:  # skorch would have put the module on the CPU
            self._data_device, self.device = self.device, None

    @property
    def _run_device(self) -> torch.device:
        check_device(self.device)
        return torch.device(self.device or getattr(self, "_data_device", "cpu"))

    @contextmanager
    def _random_state(self, fresh: bool) -> Iterator[None]:
        """Run under a random state of the net's own: a new one, or where the last fit left off."""
        device = self._run_device
        cuda = [device] if device.type == "cuda" else []
        with _random_state_lock, torch.random.fork_rng(devices=cuda):
            if fresh:
                seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device there is
            else:
                torch.set_rng_state(self._rng_states[0])
                seed = torch.initial_seed()
            if cuda:
                index = torch.cuda.current_device() if device.index is None else device.index
                torch.cuda.default_generators[index].manual_seed(seed)
                for state in () if fresh else self._rng_states[1:]:  # none where the last fit was on the CPU
                    torch.cuda.set_rng_state(state, device)
            yield
            self._rng_states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in cuda)]

    def initialize_module(self):
        """Make the module, with those of the data's sizes that it has arguments for; copy one that is there already.

        Returns
        -------
        self : object
            The net.
        """
        if not callable(self.module) or (isinstance(self.module, type) and not issubclass(self.module, nn.Module)):
            raise TypeError(f"module={self.module!r} is neither a Module nor a class or function that makes one.")
        kwargs, has_data = self.get_params_for("module"), hasattr(self, "n_features_in_")
        if has_data and not isinstance(self.module, nn.Module):
            taken = signature(self.module).parameters
            unknown = sorted(kwargs.keys() - taken.keys())
            if unknown and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
                raise TypeError(
                    f"module has no {' or '.join(f'module__{name}' for name in unknown)}: {_name(self.module)} takes "
                    f"{', '.join(taken) or 'nothing'}."
                )
            kwargs = {name: size for name, size in self._module_sizes().items() if name in taken} | kwargs
        try:
            module = self.initialized_instance(self.module, kwargs)
        except TypeError as error:
            if has_data:
                raise TypeError(
                    f"module: {error}. It gets arguments of the names {', '.join(self._module_sizes())}; give others "
                    "as module__..."
                ) from error
            raise NotFittedError(
                f"{type(self).__name__} takes the sizes of its module from data: call fit or partial_fit with "
                f"arrays, or give them as module__... parameters ({error})."
            ) from error
        if not isinstance(module, nn.Module):
            raise TypeError(f"module={self.module!r} makes a {type(module).__name__}, which is no Module.")
        self._made_with = {name: getattr(self, name) for name in self._of_module}
        if module is self.module:
            self.module_ = copy.deepcopy(module).to(self._run_device)
        else:
            self.module_ = module.to(self._run_device, getattr(self, "_dtype", torch.get_default_dtype()))
        return self

    def initialize_criterion(self):
        """Make the criterion, on the device of the data where `device` is None: skorch would leave its weights behind.

        Returns
        -------
        self : object
            The net.
        """
        super().initialize_criterion()
        if self.device is None and isinstance(self.criterion_, nn.Module):
            criterion = copy.deepcopy(self.criterion_) if self.criterion_ is self.criterion else self.criterion_
            self.criterion_ = criterion.to(self._run_device)
        return self

    def _module_sizes(self) -> dict:
        """Return what a module class may want to know of the data, by the names of its arguments."""
        return {}

    def get_iterator(self, dataset, training=False):
        """Return the iterator over batches, which fetches a batch of rows at once.

        Parameters
        ----------
        dataset : Dataset
            What to iterate over.
        training : bool, default=False
            Whether `iterator_train` or `iterator_valid` is meant.

        Returns
        -------
        iterator : DataLoader
            The iterator.
        """
        source = dataset
        while isinstance(source, Subset):
            source = source.dataset
        if not isinstance(source, RowDataset):
            return super().get_iterator(dataset, training)
        prefix = "iterator_train" if training else "iterator_valid"
        kwargs = {"batch_size": self.batch_size, "collate_fn": whole_batch} | self.get_params_for(prefix)
        if (size := kwargs["batch_size"]) is not None:
            kwargs["batch_size"] = len(dataset) if size == -1 else int(size)  # torch knows no NumPy integer
        iterator = getattr(self, prefix)
        if iterator is DataLoader and not training:
            kwargs.setdefault("generator", torch.Generator())  # else it draws a seed from the global one
        return iterator(dataset, **kwargs)

    def infer(self, x, **fit_params):
        """Apply the module to a batch.

        Parameters
        ----------
        x : array-like
            A batch of the input.
        **fit_params : dict
            Passed on to the module.

        Returns
        -------
        y : Tensor
            The module's output.
        """
        if isinstance(x, WeightedRows):
            x = x.X
        x = torch.as_tensor(x) if isinstance(x, np.ndarray) else x
        like = next(self.module_.parameters(), None)
        if isinstance(x, Tensor) and x.is_floating_point() and like is not None:
            x = to_device(x, like.device).to(like.dtype)
        try:
            return super().infer(x, **fit_params)
        except (RuntimeError, IndexError) as error:
            told = input_error(self.module_, x, error)
            if told is None:
                raise
            raise told from error


def _name(function) -> str:
    return getattr(function, "__name__", repr(function))
