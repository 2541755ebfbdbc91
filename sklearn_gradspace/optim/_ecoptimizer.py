"""ECOptimizer: any torch optimizer, in the equivalent-class space of a ReLU net."""

import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from ..gradients._user import warn_user
from ..pathspace import ScaleGraph, scale_graph
from ..pathspace._balance import canonical_scales
from ..pathspace._rescale import apply_scales
from ._balancing import Balancing
from ._path_steps import PathSteps, chain_coordinates
from ._skeleton_start import is_deep_and_plain, set_near_identity, set_skeleton_to_one

_CHOICES = {"method": ("balanced", "path"), "init": ("auto", "keep", "skeleton", "identity"), "units": ("q", "raw")}


_NOT_BY_ENTRY = tuple(
    getattr(torch.optim, name) for name in ("LBFGS", "Adafactor", "Muon", "SparseAdam") if hasattr(torch.optim, name)
)


class ECOptimizer(torch.optim.Optimizer):
    """Train a ReLU net in equivalent-class space, where all rescaled twins of the net are one point.

    Multiplying what writes a hidden unit and dividing what reads it by one factor does not change what a net computes,
    but it changes the course of training. Here it does not: training starts from the canonical twin.

    Parameters
    ----------
    module_or_graph : Module or ScaleGraph
        The net, or its scale graph.
    optimizer : Optimizer class, default=torch.optim.SGD
        What makes the steps: any of torch's that moves weights entry by entry, so not LBFGS, Adafactor or Muon.
    params : iterable of Parameter or dict, optional
        Parameters, or groups of them, as torch's optimizers take them; by default all that require a gradient. Those
        that are left out stay as they are, and so do the scales of units that they read or write.
    method : {"path", "balanced"}, default="path"
        "path" makes steps in the values of basis paths [1]_. "balanced" makes steps in the weights of a representative
        in which what writes a unit has the same norm as what reads it, and goes back towards it every `balance_every`
        steps. In both the optimizer's state is carried along.
    init : {"keep", "auto", "skeleton", "identity"}, default="keep"
        "keep" starts with the canonical twin, in the first step. The others change the function, at once, and make deep
        plain nets trainable: "skeleton" sets skeleton weights to 1; "identity" sets biases to 0 as well, and divides
        all other weights by the number of layers. These others are the given net's, so that twins do not start alike
        there: :func:`~sklearn_gradspace.pathspace.balance` the net before where that matters. "auto" is "identity" if a
        unit is more than six layers behind the next input, batch norm or shortcut, and else "keep".
    units : {"q", "raw"}, default="q"
        Units of length of ``method="path"``. "raw" are path values themselves, as in the authors' rule. With "q" a
        weight is measured by itself, and a chain of skeleton weights by the length of the change of all weights that
        it moves.
    path_penalty : float, default=0
        Factor of the sum of squared basis path values that ``method="path"`` adds to the loss.
    approximate : bool, default=False
        Whether units in front of a batch norm are among those that can be rescaled, though its ``eps`` makes the net
        invariant only nearly.
    balance_every : int, default=100
        Number of steps between two sweeps of ``method="balanced"``.
    chart_every : int, default=10
        Number of steps after which ``method="path"`` takes another skeleton if one of its path values has become more
        than twice as large, or less than half as large, as when it was taken.
    **kwargs : dict
        Parameters of `optimizer`: ``lr``, ``momentum``, ``weight_decay``, ... With ``method="path"`` weight decay is
        that of the coordinates.

    Attributes
    ----------
    graph : ScaleGraph
        The scale graph in which it moves.
    inner : Optimizer
        The optimizer that makes the steps.

    Warns
    -----
    UserWarning
        If no unit of the net can be rescaled: then this is `optimizer`. If gradients are not finite: then nothing
        changes.

    Notes
    -----
    What looks at weights or gradients before the first step, as gradient clipping does, sees the net as it was given:
    call :func:`~sklearn_gradspace.pathspace.balance` beforehand where it should not. Parameters are frozen, or not,
    when the optimizer is made.

    Weights that are changed from outside, say by ``load_state_dict`` of the net, are where the next step begins; with
    ``method="path"`` another skeleton is taken then. It does not see what is written in place to their ``.data``, of
    which torch keeps no count: write to the weights themselves, under ``torch.no_grad``.

    A step of ``method="path"`` changes a path value of the skeleton by a factor of two at most, and all steps with one
    skeleton by a factor of four, so that it never passes through zero, where there are no coordinates.

    On a CUDA device steps do not wait for the device, but that every `chart_every` steps ratios are looked at.
    Optimizers that have a fused form take it there, unless told otherwise, in which a step with gradients that are not
    finite is refused without a warning; others wait for the check of them.

    References
    ----------
    .. [1] Q. Meng, S. Zheng, H. Zhang, W. Chen, Q. Ye, Z.-M. Ma, N. Yu, T.-Y. Liu. "G-SGD: Optimizing ReLU neural
       networks in its positively scale-invariant space". ICLR 2019.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_gradspace.optim import ECOptimizer
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> optimizer = ECOptimizer(net, torch.optim.SGD, lr=0.1, momentum=0.9)
    >>> for _ in range(10):
    ...     loss = net(torch.ones(5, 4)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    """

    def __init__(
        self,
        module_or_graph: nn.Module | ScaleGraph,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        *,
        params=None,
        method: str = "path",
        init: str = "keep",
        units: str = "q",
        path_penalty: float = 0.0,
        approximate: bool = False,
        balance_every: int = 100,
        chart_every: int = 10,
        **kwargs,
    ) -> None:
        if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
            raise TypeError(f"optimizer must be a class of optimizers, such as torch.optim.SGD, got {optimizer!r}.")
        if issubclass(optimizer, _NOT_BY_ENTRY):
            raise ValueError(f"{optimizer.__name__} does not move weights entry by entry: use SGD, Adam or the like.")
        for name, choice in (("method", method), ("init", init), ("units", units)):
            if not isinstance(choice, str) or choice not in _CHOICES[name]:
                raise ValueError(f"{name}={choice!r} is none of {', '.join(map(repr, _CHOICES[name]))}.")
        for name, value, kind, least in (
            ("path_penalty", path_penalty, Real, 0),
            ("balance_every", balance_every, Integral, 1),
            ("chart_every", chart_every, Integral, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:
                what = "an integer" if kind is Integral else "a finite number"
                raise ValueError(f"{name}={value!r} must be {what}, {least} or more.")
        if not isinstance(approximate, bool):
            raise TypeError(f"approximate={approximate!r} is neither True nor False.")
        for name, given, default in (("units", units, "q"), ("path_penalty", path_penalty, 0)):
            if method != "path" and given != default:
                raise ValueError(f'{name}={given!r} is about path values: use method="path".')
        graph = module_or_graph if isinstance(module_or_graph, ScaleGraph) else scale_graph(module_or_graph)
        if params is None:
            params = [parameter for parameter in graph.module.parameters() if parameter.requires_grad]
        params = list(params) if isinstance(params, Iterable) and not isinstance(params, Tensor) else [params]
        if not all(isinstance(parameter, (Tensor, dict, tuple)) for parameter in params):
            raise TypeError(f"params must be parameters of the module, or groups of them, not {params[:3]!r:.80}.")
        usual = optimizer(params, **kwargs)
        if all(_is_free_to_fuse(group) for group in usual.param_groups):
            for options in (kwargs, usual.defaults, *usual.param_groups):
                options["fused"] = True
        super().__init__(usual.param_groups, usual.defaults)
        own = {id(parameter) for parameter in graph.module.parameters()}
        if not any(id(parameter) in own for group in self.param_groups for parameter in group["params"]):
            raise ValueError("params holds no parameter of the module: are they those of another net, or of a copy?")
        self.graph = _trained_part(graph, self.param_groups, approximate)
        if not self.graph.n_units:
            warn_user(
                "no unit of the net can be rescaled, so that there are no equivalence classes: this is "
                f"{optimizer.__name__} alone. print(scale_graph(net)) says why."
            )
            method = None
        elif init == "skeleton":
            set_skeleton_to_one(self.graph)
        elif init == "identity" or (init == "auto" and is_deep_and_plain(self.graph)):
            set_near_identity(self.graph)
        chains = [[chain_coordinates(self.graph)] if method == "path" else [] for _ in self.param_groups]
        # Names of parameters would have to be as many as these.
        plain = [{name: group[name] for name in group if name != "param_names"} for group in self.param_groups]
        plain = [dict(group, params=[*group["params"], *chain]) for group, chain in zip(plain, chains, strict=True)]
        self.inner = optimizer(plain, **kwargs)
        self._method, self._units, self._starts = method, units, method is not None
        self._space: PathSteps | Balancing | None = None
        if method == "path":
            self._space = PathSteps(self.graph, self.inner, units == "raw", path_penalty, chart_every)
        elif method == "balanced":
            self._space = Balancing(self.graph, self.inner, balance_every)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters, which are trained as `optimizer` does.

        Parameters
        ----------
        param_group : dict
            As torch's optimizers take it.
        """
        super().add_param_group(param_group)
        if hasattr(self, "inner"):
            group = {name: value for name, value in self.param_groups[-1].items() if name != "param_names"}
            self.inner.add_param_group(group | {"params": list(group["params"])})

    @torch.no_grad()
    def step(self, closure=None):
        """Make a step.

        Parameters
        ----------
        closure : callable, optional
            It computes the loss and the gradients anew, and is called once.

        Returns
        -------
        loss : Tensor or None
            What `closure` gave.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, own in zip(self.inner.param_groups, self.param_groups, strict=True):
            group.update(_options(own))
        if not self._gradients_are_finite():
            warn_user("the step is refused, since gradients are not finite; weights and state stay.")
            return loss
        if self._starts:
            self._take_canonical_twin()
            self._starts = False
        if self._space is None:
            self.inner.step()
        else:
            self._space.step()
        for group, own in zip(self.inner.param_groups, self.param_groups, strict=True):
            own.update(_options(group))  # some optimizers count there
        return loss

    def _gradients_are_finite(self) -> bool:
        given = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [gradient._values() if gradient.is_sparse else gradient for gradient in given]
        if not gradients:
            return True
        if gradients[0].is_cuda and all(group.get("fused") for group in self.inner.param_groups):
            largest = torch.stack(torch._foreach_norm(gradients, torch.inf))
            # Fused optimizers skip the step on the device.
            self.inner.found_inf = (~largest.isfinite().all()).float()  # type: ignore[attr-defined]
            return True
        total = torch.stack(
            [gradient.sum() for gradient in gradients]
        ).sum()  # which may overflow, but is ten times as fast
        return math.isfinite(total) or all(bool(gradient.isfinite().all()) for gradient in gradients)

    def _take_canonical_twin(self) -> None:
        scales = canonical_scales(self.graph)
        apply_scales(self.graph, scales)
        for name, edges in self.graph.edges.items():
            gradient = self.graph.module.get_parameter(name).grad
            if gradient is not None and (edges.write.any() or edges.read.any()):
                gradient.div_((scales[edges.write] / scales[edges.read]).to(gradient))

    def state_dict(self) -> dict:
        """Return the optimizer's state, with which training goes on bit by bit as if it had not been interrupted.

        Of torch's NAdam in double precision that is not so: it reads a part of its own state in single precision.

        Returns
        -------
        state : dict
            The state, with tensors and plain objects in it.
        """
        return super().state_dict() | {
            **self._kind(),
            "inner": self.inner.state_dict(),
            "starts": self._starts,
            "space": None if self._space is None else self._space.state_dict(),
        }

    def _kind(self) -> dict:
        """Return what a state has to be of."""
        kind = {"method": self._method, "optimizer": type(self.inner).__name__, "n_units": self.graph.n_units}
        return kind | ({"units": self._units} if self._method == "path" else {})

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a state.

        Parameters
        ----------
        state_dict : dict
            What :meth:`state_dict` gave, for a net of the same architecture whose weights are loaded as well: before
            or afterwards, but after the optimizer was made if its `init` changes the net.
        """
        missing = {"method", "inner", "starts", "space"}.difference(state_dict or ())
        if missing:
            raise ValueError(f"this is not the state of an ECOptimizer: it lacks {sorted(missing)}.")
        for name, own in self._kind().items():
            if state_dict.get(name, own) != own:  # states of older versions lack some
                raise ValueError(
                    f"this is the state of an ECOptimizer with {name}={state_dict[name]!r}; here it is {own!r}."
                )
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        if self._space is not None:
            self._space.load_state_dict(state_dict["space"])
        self.inner.load_state_dict(state_dict["inner"])
        self._starts = state_dict["starts"]

    def __getstate__(self) -> dict:
        # A scheduler puts a step of its own into the optimizer that it was made with.
        hidden = ("_zero_grad_profile_name", "_warned_capturable_if_run_uncaptured", "step")
        return {n: v for n, v in vars(self).items() if n not in hidden and "hook" not in n} | super().__getstate__()


def _options(group: dict) -> dict:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def _is_free_to_fuse(group: dict) -> bool:
    """Return whether parameters on CUDA devices have an optimizer with a fused form, and nothing is said of forms."""
    unsaid = group.get("fused", False) is None and group.get("foreach") is None
    other_forms = group.get("capturable") or group.get("differentiable")
    return unsaid and not other_forms and all(parameter.is_cuda for parameter in group["params"])


def _trained_part(graph: ScaleGraph, groups: list[dict], approximate: bool) -> ScaleGraph:
    """Return the graph of the units that may change their scales."""
    optimized = {id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad}
    fixed = [name for name, parameter in graph.module.named_parameters() if id(parameter) not in optimized]
    if approximate:
        graph = replace(graph, approximate=torch.zeros_like(graph.approximate))
    graph = graph.without(graph.approximate)
    return graph.without(graph.touching(fixed), "frozen parameters", "they are not trained")
