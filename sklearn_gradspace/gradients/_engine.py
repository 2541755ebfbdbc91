"""The engine: per-sample gradients of scalars of a net's output, for one scalar a row or for all of them.

A net and a batch enter; gradients of shape (n, n_params) or (n, n_labels, n_params) leave. One forward pass serves all
scalars; a backward pass for one or several goes to the outputs of the layers only, and a rule for each layer turns what
arrives there into the gradients of its parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from math import prod
from numbers import Integral
from threading import local
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from ._blocks import choose_parameters, make_blocks
from ._computing import computing
from ._forward import ForwardPass, forward_pass, net_output
from ._group_norm import guard_group_norms
from ._lstm import unfold_lstms
from ._memory import LINE_BYTES, RowLimit, empty, free_bytes, is_out_of_memory, keep_freed_memory
from ._outputs import SCALARS, Labels, NotFiniteError, Scalar, check_finite
from ._passes import slices
from ._rules import EngineReport, ParameterRule, loop, write_gradients
from ._scratch import Scratch
from ._sharing import as_rows, check_device, packed, shared_copy, to_device, usable
from ._step_products import Ways
from ._trial import try_out
from ._user import warn_user

DTYPES = (None, "float64", "float32", "bfloat16", "tf32")

# Gradients that are made, and worked on, at a time: what a CPU's cache holds, what is worth a launch elsewhere.
CACHE_BYTES = 2**24
_PART_BYTES = {"cpu": CACHE_BYTES}
_PART_BYTES_ELSEWHERE = 2**27
# Rows of a pass where nobody says how many: from a few on until they take these bytes. Those of larger passes are first
# written to in new memory on a CPU, which takes up to a quarter of the time.
_PASS_BYTES = {"cpu": 2**27}
_PASS_BYTES_ELSEWHERE = 2**32
_FEW_ROWS = 16
_SCRATCH_BYTES = 2**26
_LINE = LINE_BYTES // 4  # single precision numbers of a line of the cache

Finish = Callable[[ForwardPass, Tensor], Tensor | None]


class GradientEngine:
    """Per-sample gradients of scalars of the output of a net in evaluation mode.

    Parameters
    ----------
    net : Module
        Trained net, from (n, ...) to outputs of shape (n, n_outputs). It is shared and never changed.
    sample : ndarray of shape (n, ...)
        Rows of data, a few of which decide on the rules; all that come later have as many axes.
    layers : str or sequence of str
        Which parameters; see :func:`choose_parameters`.
    device : device, optional
        Where to compute; by default where the net is.
    scalar : {"cross_entropy", "log_probability", "logit"} or callable, default="cross_entropy"
        What is differentiated. "cross_entropy" and "log_probability": of each label, where a net with one output has
        its logit of the second of two labels. "logit": each output, whatever it means; right for regression. A callable
        maps outputs of shape (n, n_outputs) to scalars of shape (n, n_scalars), each of its row alone.
    output : callable, optional
        Picks the outputs from what the net returns, where that is not a tensor of them.
    dtype : {"float64", "float32", "bfloat16", "tf32"}, optional
        Precision to compute in; by default the net's. All but "tf32" make a copy of the weights. "tf32" lets CUDA
        devices round the factors of matrix products to 11 significant bits. "bfloat16" is for the passes through the
        net; what its layers got is multiplied in float32.

    Attributes
    ----------
    blocks : tuple of Block
        Which columns of a gradient belong to which parameter.
    n_labels, n_params : int
        Number of scalars, one for each candidate label, and of gradient entries for each.
    rules : EngineReport of ParameterRule
        How the gradients of each parameter are computed, and why so.
    row_bytes, label_bytes : int
        Memory that a row takes in a pass, and what each of its scalars adds, without the gradients themselves.
    ways : dict of str to (int, tuple of tuple)
        Of a parameter with the rule `step_products`, which axis of its steps belongs to the samples, and their kinds.
    uses : dict of str to int
        By how many steps of differentiation each parameter is used that has a rule of its layer, or is not used.
    transform_bytes : int
        Memory that `torch.func` takes for a row and one of its scalars; 0 where no parameter needs it.
    together_bytes : int
        Memory of a row and scalar in a backward pass for several scalars; 0 where none can go for several.
    rounding_error : float or None
        Largest error of a parameter's gradients on the rows that decided, relative to the largest entry, where `dtype`
        is "bfloat16" or "tf32".

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradspace.gradients import GradientEngine
    >>> X = torch.ones(2, 4).numpy()
    >>> engine = GradientEngine(torch.nn.Linear(4, 3), X, layers="all")
    >>> engine(X).shape  # rows, labels, parameters
    torch.Size([2, 3, 15])
    >>> engine(X, torch.tensor([0, 2])).shape
    torch.Size([2, 15])
    """

    # What is found out on a few rows.
    input_dtype: torch.dtype
    channels_last: bool
    n_labels: int
    rules: EngineReport
    signature: dict[str, list]
    # Engines of files of older versions lack the next five.
    n_axes: int = 0
    ways: Ways = MappingProxyType({})
    uses: Mapping[str, int] = MappingProxyType({})
    transform_bytes: int = 0
    together_bytes: int = 0
    row_bytes: int
    label_bytes: int
    rounding_error: float | None

    def __init__(
        self,
        net: nn.Module,
        sample: np.ndarray,
        layers: str | Sequence[str] = "weights",
        device: torch.device | str | None = None,
        *,
        scalar: Scalar = "cross_entropy",
        output: Callable | None = None,
        dtype: str | None = None,
    ) -> None:
        if not callable(scalar) and not (isinstance(scalar, str) and scalar in SCALARS):
            raise ValueError(f"scalar={scalar!r} is none of {', '.join(map(repr, SCALARS))}, and no function.")
        if not (dtype is None or isinstance(dtype, str)) or dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is none of {', '.join(map(repr, DTYPES))}.")
        check_device(device)
        self.net = getattr(net, "_orig_mod", net)  # of a compiled one, whose hooks would have it compiled again
        self.scalar, self.target, self.output, self.precision = scalar, device, output, dtype
        self.blocks = make_blocks(choose_parameters(self.net, layers))
        self.n_params = sum(block.size for block in self.blocks)
        self._attach()
        hooked = [block.name for block in self.blocks if self.net.get_parameter(block.name)._backward_hooks]
        if hooked:
            warn_user(
                f"the hooks that {', '.join(hooked)} have for their gradients (Tensor.register_hook) are not called."
            )
        try:
            with self.computing():
                try_out(self, sample)
        except Exception as error:
            if not is_out_of_memory(error) or type(error) is MemoryError:  # the engine's own
                raise
            needed = 16 * sum(p.numel() for p in self._module.parameters()) + 64 * max(b.size for b in self.blocks)
            raise MemoryError(
                f"to look at a few rows in double precision takes {needed / 2**30:.2f} GiB and what a pass of the net "
                "takes. Choose parameters by `layers`, or another device."
            ) from error

    def _attach(self) -> None:
        self._local, self._module = local(), self.copy_of_net()
        if self.precision not in (None, "tf32"):
            self._module.to(getattr(torch, self.precision))
        first = self._module.get_parameter(self.blocks[0].name)
        self.device, self.dtype = first.device, first.dtype
        self.scratch, self.apply = Scratch(), net_output(self.output)
        self.row_limit = RowLimit(self.device)
        keep_freed_memory()

    def copy_of_net(self) -> nn.Module:
        """Return a copy on the shared weights, in which nothing before the first chosen parameter is differentiated.

        Returns
        -------
        module : Module
            The copy.
        """
        module = shared_copy(self.net, self.target)
        chosen = {block.name for block in self.blocks}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in chosen)
        guard_group_norms(module)
        unfold_lstms(module)
        return module

    @property
    def module(self) -> nn.Module:
        """A copy of the net for this thread, on the shared weights: transforms and hooks change it in passing."""
        if not hasattr(self._local, "module"):
            self._local.module = shared_copy(self._module)
            self._local.parameters = {block.name: self._local.module.get_parameter(block.name) for block in self.blocks}
        return self._local.module

    def uses_of(self, forward: ForwardPass, names: Iterable[str]) -> dict[str, int]:
        """Return by how many steps of differentiation a pass uses parameters.

        Parameters
        ----------
        forward : ForwardPass
            The pass, through this thread's copy of the net.
        names : iterable of str
            The parameters.

        Returns
        -------
        uses : dict of str to int
            The numbers, by parameter.
        """
        return {name: forward.uses.get(id(self._local.parameters[name]), 0) for name in names}

    def __getstate__(self) -> dict:
        attached = ("_local", "_module", "scratch", "apply", "row_limit")
        return {key: value for key, value in vars(self).items() if key not in attached} | {"net": packed(self.net)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.target = None if self.target is None else usable(self.target)
        self._attach()

    @property
    def feature_dtype(self) -> torch.dtype:
        """The precision of the gradients: the net's, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    def outputs(self, X: np.ndarray) -> Tensor:
        """Return the net's output of shape (n, n_outputs) for the rows `X`.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.

        Returns
        -------
        outputs : Tensor of shape (n, n_outputs)
            What the net says of them.
        """

        def compute(rows: slice) -> Iterator[tuple[int, Tensor]]:
            yield len(X[rows]), check_finite(self.apply(self.module, self.inputs(X[rows])))

        with self.computing(), torch.no_grad():
            of_passes = [of_pass for _, of_pass in self.row_limit.passes(len(X), compute, None, self.needed)]
            return torch.cat(of_passes) if of_passes else next(compute(slice(0)))[1]

    def __call__(
        self,
        X: np.ndarray,
        labels: Labels = None,
        out: Tensor | None = None,
        batch_size: int | None = None,
        finish: Finish | None = None,
    ) -> Tensor:
        """Compute the gradients of the rows `X`.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.
        labels : Tensor of shape (n,) or "predicted", optional
            The number of one scalar for each row, or that of the label that the net predicts; by default all.
        out : Tensor of shape (n, n_params) or (n, n_labels, n_params), optional
            Where to write; memory that was written to before is written to several times as fast.
        batch_size, finish
            As of :meth:`parts`.

        Returns
        -------
        Tensor of shape (n, n_params) or (n, n_labels, n_params)
            The gradients, such as ``d CE(f_w(x), c) / d w``, on the engine's device.
        """
        out = self.allocate(len(X), labels is None) if out is None else out
        shape = (len(X), self.n_params) if labels is not None else (len(X), self.n_labels, self.n_params)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            raise ValueError(f"out must be a tensor of {self.feature_dtype}, of shape {shape} for these rows.")
        if out.shape != shape:
            raise ValueError(f"out has shape {tuple(out.shape)}; the gradients of X have {shape}.")
        for _ in self.parts(X, labels, out if labels is None else out.unsqueeze(1), batch_size, finish):
            pass
        return out

    def allocate(self, n: int, all_labels: bool, n_columns: int | None = None) -> Tensor:
        """Return an uninitialised place for the gradients of `n` rows, or for `n_columns` numbers made of each.

        Parameters
        ----------
        n : int
            Number of rows.
        all_labels : bool
            Whether for every scalar of a row, or for one.
        n_columns : int, optional
            Numbers of a gradient; by default one for each entry of the parameters.

        Returns
        -------
        place : Tensor of shape (n, n_labels, n_columns) or (n, n_columns)
            The place, on the engine's device.

        Raises
        ------
        MemoryError
            If there is not enough memory; it says how much is needed and what to do.
        """
        n_columns = self.n_params if n_columns is None else n_columns
        shape = (n, self.n_labels, n_columns) if all_labels else (n, n_columns)
        try:
            return empty(shape, self.feature_dtype, self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            needed = prod(shape) * self.feature_dtype.itemsize
            raise MemoryError(f"the gradients of {n} rows take {self._beside_free(needed)}") from error

    def parts(
        self,
        X: np.ndarray,
        labels: Labels = None,
        out: Tensor | None = None,
        batch_size: int | None = None,
        finish: Finish | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Compute the gradients of consecutive rows, as many at a time as are quickly worked on.

        When memory runs out, the passes through the net take half the rows from there on.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.
        labels : Tensor of shape (n,) or "predicted", optional
            As of a call of the engine.
        out : Tensor of shape (n, k, n_params), optional
            Where to write; by default one place for each part in turn.
        batch_size : int, optional
            Rows of a pass through the net; by default :meth:`pass_rows`.
        finish : callable, optional
            What becomes of a pass and its gradients, in place, or what it returns instead.

        Returns
        -------
        parts : iterator of (slice, Tensor of shape (len(rows), k, n_params))
            The rows of a part, and their gradients, or what `finish` returned, valid until the next is asked for. That
            outputs are not finite is told of after the last on devices other than the CPU.
        """
        if not (batch_size is None or (isinstance(batch_size, Integral) and batch_size > 0)):
            raise ValueError(f"batch_size={batch_size!r} is no positive number of rows.")
        if isinstance(labels, str) and labels != "predicted":
            raise ValueError(f"labels={labels!r} is neither 'predicted' nor a number for each row.")
        each = labels is not None and not isinstance(labels, str)
        labels = self._checked_labels(labels, len(X)) if each else labels  # type: ignore[arg-type]

        def compute(batch: slice) -> Iterator[tuple[int, Tensor]]:
            of_batch = labels[batch] if each else labels  # type: ignore[index]
            return self._batch_parts(X[batch], of_batch, None if out is None else out[batch], finish)

        most = self.pass_rows(self.n_labels if labels is None else 1) if batch_size is None else batch_size
        return self.row_limit.passes(len(X), compute, most, partial(self.needed, labels is None))

    def _batch_parts(
        self, X: np.ndarray, labels: Labels, out: Tensor | None, finish: Finish | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the numbers of rows and the gradients of the parts of one batch."""
        with self.computing():
            forward = self.forward(X, labels)
        k = forward.cotangents.shape[1]
        step = min(len(X), self.part_rows(k))
        lent = self.scratch.lent("gradients", (step, k, _aligned(self.n_params)), self.feature_dtype, self.device)
        with lent if out is None else nullcontext() as buffer:
            with self.computing():
                whole = buffer[..., : self.n_params] if out is None else out
                places, rules = self.places(whole), self.rules_for(forward)
            for rows in slices(len(X), step):
                at = slice(rows.stop - rows.start) if out is None else rows
                with self.computing():
                    gradients, part = whole[at], forward.rows(rows)
                    # A single part needs no cuts, which are 2% of the time of a small pass.
                    own = places if len(X) == step else {name: place[at] for name, place in places.items()}
                    write_gradients(part, rules, own)
                    finished = None if finish is None else finish(part, gradients)
                yield rows.stop - rows.start, gradients if finished is None else finished

    def part_rows(self, k: int) -> int:
        """Return of how many rows the gradients of `k` scalars each are made at a time.

        Parameters
        ----------
        k : int
            Number of scalars of a row.

        Returns
        -------
        rows : int
            One at least.
        """
        at_once = _PART_BYTES.get(self.device.type, _PART_BYTES_ELSEWHERE)
        return max(1, at_once // (k * self._gradient_bytes))

    def pass_rows(self, k: int) -> int:
        """Return how many rows for `k` scalars each go through the net at a time, unless a number is asked for.

        Parameters
        ----------
        k : int
            Number of scalars of a row.

        Returns
        -------
        rows : int
            One at least.
        """
        at_once = _PASS_BYTES.get(self.device.type, _PASS_BYTES_ELSEWHERE)
        return max(_FEW_ROWS, at_once // max(1, self.row_bytes + k * self.label_bytes))

    def _checked_labels(self, labels: Tensor, n: int) -> Tensor:
        labels = torch.as_tensor(labels)
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels are numbers of scalars, of an integer type; these are of {labels.dtype}.")
        labels = labels.to(torch.int64)
        # On other devices a look at the labels would wait for them.
        wrong = False
        if labels.device.type == "cpu" and labels.numel():
            least, largest = labels.aminmax()
            wrong = least.item() < 0 or largest.item() >= self.n_labels
        if labels.shape != (n,) or wrong:
            raise ValueError(
                f"labels must be {n} numbers from 0 to {self.n_labels - 1}, one for each row; of shape "
                f"{tuple(labels.shape)}, they are {labels.flatten()[:10].tolist()}"
                f"{' and so on' if labels.numel() > 10 else ''}."
            )
        return labels

    def rules_for(self, forward: ForwardPass) -> Sequence[ParameterRule]:
        """Return `rules`, or the loop where rows took another way through the net than those that decided on these.

        Parameters
        ----------
        forward : ForwardPass
            A pass of these rows.

        Returns
        -------
        rules : sequence of ParameterRule
            One a parameter.
        """
        if forward.as_tried:
            return self.rules
        return [ParameterRule(rule.name, loop.__name__, "called otherwise") for rule in self.rules]

    def places(self, out: Tensor) -> dict[str, Tensor]:
        """Return views of shape (n, k, ``*parameter.shape``) on gradients of shape (n, k, n_params).

        Parameters
        ----------
        out : Tensor of shape (n, k, n_params)
            Gradients.

        Returns
        -------
        places : dict of str to Tensor
            The views, by parameter.
        """
        columns = out.split([block.size for block in self.blocks], -1)
        return {block.name: block.shaped(of_block) for block, of_block in zip(self.blocks, columns, strict=True)}

    def forward(self, X: np.ndarray, labels: Labels = None) -> ForwardPass:
        """Return a pass of the rows `X` for the scalars `labels`, or for all.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.
        labels : Tensor of shape (n,), "predicted" or callable, optional
            As of a call of the engine, or a function from outputs to numbers of scalars.

        Returns
        -------
        forward : ForwardPass
            What went into the layers, and what came back to them.
        """
        scalars = self._scalars_a_pass(len(X)) if labels is None else 1
        if scalars > 1:
            try:
                return self._pass(X, None, scalars)
            except Exception as error:  # of steps for one alone, which the rows that were tried did not take
                if isinstance(error, NotFiniteError) or is_out_of_memory(error):
                    raise
                self.together_bytes = 0  # not tried again
        return self._pass(X, labels)

    def _scalars_a_pass(self, n: int) -> int:
        """Return for how many scalars of `n` rows one backward pass goes."""
        taken = n * self.together_bytes
        return max(1, self._bytes_at_once // taken) if taken else 1

    def _pass(self, X: np.ndarray, labels: Labels, scalars: int = 1) -> ForwardPass:
        # Several scalars go back faster through images in the usual order.
        inputs = self.inputs(X, plain=scalars > 1)
        axes = {name: axis for name, (axis, _) in self.ways.items()}
        forward = forward_pass(
            self.apply, self.module, self.signature, inputs, self.scalar, labels, self.scratch, scalars_a_pass=scalars,
            axes=axes,
        )  # fmt: skip
        self.row_limit.check_finite(forward.outputs)
        same = self.uses_of(forward, self.uses) == self.uses and forward.takes(self.ways)
        tried = forward.like(self.signature) if same else None
        forward = tried or replace(forward, calls={}, as_tried=False)
        if not self.transform_bytes:
            return forward
        return replace(forward, at_once=self._bytes_at_once // self.transform_bytes)

    def inputs(self, X: np.ndarray, plain: bool = False) -> Tensor:
        """Return rows as the net takes them, on the device; `plain` in the usual order of memory.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows.
        plain : bool, default=False
            Whether in the usual order of memory, also where images are quicker with channels last.

        Returns
        -------
        inputs : Tensor of shape (n, ...)
            The rows, in the engine's precision.
        """
        rows = np.array(as_rows(X), order="C")
        if rows.dtype.kind not in "buif":
            raise ValueError(f"rows must be real numbers; these are of {rows.dtype}.")
        if self.n_axes not in (0, rows.ndim):
            way_out = " A single row is X[:1]." if rows.ndim == self.n_axes - 1 else ""
            raise ValueError(
                f"rows have shape {rows.shape}, but {self.n_axes} axes as in `sample` are needed.{way_out}"
            )
        inputs = to_device(torch.from_numpy(rows), self.device).to(self.input_dtype)
        # `contiguous` would leave images of one channel as they are: convolutions would take them for the usual order.
        return inputs.clone(memory_format=torch.channels_last) if self.channels_last and not plain else inputs

    def computing(self, exact: bool = False) -> AbstractContextManager:
        """Differentiate in whatever mode the caller is, in the engine's precision; in TF32 only if that was asked for.

        What is `exact` is never rounded so: solving a system of equations, say.

        Parameters
        ----------
        exact : bool, default=False
            Whether TF32 is off in any case.

        Returns
        -------
        context : context manager
            The context in which to compute.
        """
        return computing(self.device, tf32=self.precision == "tf32" and not exact)

    def memory(self, n: int, all_labels: bool = True, features: int | None = None) -> int:
        """Return the bytes that a pass of `n` rows takes at most, for one scalar a row or for all.

        They are those of the pass through the net, of what comes back to the layers, of the gradients of `features`
        rows, by default `n`, and of what does not depend on rows: torch holds the weights once more in the order of
        memory that it computes in, some scratch, and pieces of the work of `torch.func`, or for several scalars.

        Parameters
        ----------
        n : int
            Number of rows.
        all_labels : bool, default=True
            Whether for every scalar of a row, or for one.
        features : int, optional
            Number of rows whose gradients exist at a time.

        Returns
        -------
        n_bytes : int
            Beyond what is there before.
        """
        k = self.n_labels if all_labels else 1
        features = n if features is None else features
        constant = sum(p.nbytes for p in self._module.parameters()) + _SCRATCH_BYTES
        if self.transform_bytes or (all_labels and self.together_bytes):
            constant += self._bytes_at_once
        return constant + n * (self.row_bytes + k * self.label_bytes) + features * k * self._gradient_bytes

    def needed(self, all_labels: bool = True) -> str:
        """Return what a pass of one row takes, beside what is free, and the way out.

        Parameters
        ----------
        all_labels : bool, default=True
            Whether for every scalar of a row, or for one.

        Returns
        -------
        text : str
            For an error.
        """
        return self._beside_free(self.memory(1, all_labels))

    @property
    def _gradient_bytes(self) -> int:
        return _aligned(self.n_params) * self.feature_dtype.itemsize

    @property
    def _bytes_at_once(self) -> int:
        """What `torch.func` and passes back for several scalars may take: a row and scalar of the former at least."""
        return max(_SCRATCH_BYTES if self.device.type == "cpu" else _PART_BYTES_ELSEWHERE, self.transform_bytes)

    def _beside_free(self, n_bytes: int) -> str:
        """Return a number of bytes beside those that are free, and the way out."""
        gib, free = 2.0**30, free_bytes(self.device)
        largest = max(self.blocks, key=lambda block: block.size)
        text = f"{n_bytes / gib:.2f} GiB on {self.device}, for {self.n_params} parameters and {self.n_labels} labels"
        if free is not None:
            fit = int(self.n_params * free / n_bytes)
            text += f"; {free / gib:.2f} GiB are free, enough for about {fit} parameters, or for fewer rows at a time"
        return f"{text}. Choose parameters by `layers`: the largest, {largest.name!r}, has {largest.size} entries."


def _aligned(n_columns: int) -> int:
    """Return `n_columns` rounded up to whole lines of the cache: rows that begin with one are written faster."""
    return n_columns + -n_columns % _LINE
