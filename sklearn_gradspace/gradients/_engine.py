"""The engine: per-sample gradients of scalars of a net's output, for one scalar a row or for all of them.

A net and a batch enter; gradients of shape (n, n_params) or (n, n_labels, n_params) leave. One forward pass serves all
scalars; one backward pass for each goes to the outputs of the layers only, and a rule for each layer turns what arrives
there into the gradients of its parameters.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._blocks import choose_parameters, make_blocks
from ._forward import ForwardPass, forward_pass, net_output
from ._memory import free_bytes, is_out_of_memory
from ._outputs import SCALARS, Scalar, check_finite, cotangents
from ._refusals import refuse_batch_statistics, refuse_mixing, refuse_probabilities
from ._rules import LAYER_RULES, ParameterRule, choose_rules, loop, write_gradients
from ._scratch import Scratch
from ._sharing import packed, shared_copy, usable

DTYPES = (None, "float64", "float32", "bfloat16", "tf32")

# Rows that decide on the rules, and parameters from which on they are fewer: their gradients are held in double.
_PROBE_ROWS, _PROBE_ROWS_OF_MANY, _MANY = 4, 2, 10**7
# Gradients that are made, and worked on, at a time: what a CPU's cache holds, what is worth a launch elsewhere.
_PART_BYTES = {"cpu": 2**24}
_PART_BYTES_ELSEWHERE = 2**28
_SCRATCH_BYTES = 2**26


class GradientEngine:
    """Per-sample gradients of scalars of the output of a net in evaluation mode.

    Parameters
    ----------
    net : Module
        Trained net, from (n, ...) to outputs of shape (n, n_outputs). It is shared and never changed.
    sample : ndarray of shape (n, ...)
        Rows of data, a few of which decide on the rules.
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
    rounding_error : float or None
        Largest error of a parameter's gradients on the rows that decided, relative to the largest entry, where `dtype`
        is "bfloat16" or "tf32".
    """

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
        if not callable(scalar) and scalar not in SCALARS:
            raise ValueError(f"scalar={scalar!r} is none of {', '.join(map(repr, SCALARS))}, and no function.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is none of {', '.join(map(repr, DTYPES))}.")
        self.net, self.scalar, self._target, self._output, self._dtype = net, scalar, device, output, dtype
        self.blocks = make_blocks(choose_parameters(net, layers))
        self.n_params = sum(block.size for block in self.blocks)
        self._attach()
        self._input_dtype = self.dtype
        with self.computing():
            n_rows = _PROBE_ROWS if self.n_params < _MANY else _PROBE_ROWS_OF_MANY
            self._try_out(sample[np.linspace(0, len(sample) - 1, n_rows, dtype=int)])

    def _attach(self) -> None:
        self.module = shared_copy(self.net, self._target)
        if self._dtype not in (None, "tf32"):
            self.module.to(getattr(torch, self._dtype))
        first = self.module.get_parameter(self.blocks[0].name)
        self.device, self.dtype = first.device, first.dtype
        self.scratch, self.apply = Scratch(), net_output(self._output)

    def __getstate__(self) -> dict:
        state = {key: value for key, value in vars(self).items() if key not in ("module", "scratch", "apply")}
        return state | {"net": packed(self.net)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._target = None if self._target is None else usable(self._target)
        self._attach()

    def fork(self) -> "GradientEngine":
        """Return an engine on the same net for another thread."""
        twin = object.__new__(GradientEngine)
        vars(twin).update(vars(self), module=shared_copy(self.module), scratch=Scratch())
        return twin

    @property
    def feature_dtype(self) -> torch.dtype:
        """The precision of the gradients: the net's, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @torch.no_grad()
    def outputs(self, X: np.ndarray) -> Tensor:
        """Return the net's output of shape (n, n_outputs) for the rows `X`."""
        with self.computing():
            return check_finite(self.apply(self.module, self.inputs(X)))

    def __call__(self, X: np.ndarray, labels: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Compute the gradients of the rows `X`.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
        labels : Tensor of shape (n,), optional
            The number of one scalar for each row; by default all.
        out : Tensor of shape (n, n_params) or (n, n_labels, n_params), optional
            Where to write; memory that was written to before is written to several times as fast.

        Returns
        -------
        Tensor of shape (n, n_params) or (n, n_labels, n_params)
            The gradients, such as ``d CE(f_w(x), c) / d w``, on the engine's device.
        """
        with self.computing():
            out = self.allocate(len(X), labels is None) if out is None else out
        for _ in self.parts(X, labels, out if labels is None else out.unsqueeze(1)):
            pass
        return out

    def allocate(self, n: int, all_labels: bool) -> Tensor:
        """Return an uninitialised place for the gradients of `n` rows."""
        shape = (n, self.n_labels, self.n_params) if all_labels else (n, self.n_params)
        try:
            return torch.empty(shape, dtype=self.feature_dtype, device=self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            needed = n * (self.n_labels if all_labels else 1) * self._gradient_bytes
            raise MemoryError(f"the gradients of {n} rows take {self._beside_free(needed)}") from error

    def parts(
        self, X: np.ndarray, labels: Tensor | None = None, out: Tensor | None = None, batch_size: int | None = None
    ) -> Iterator[tuple[slice, ForwardPass, Tensor]]:
        """Compute the gradients of consecutive rows, as many at a time as are quickly worked on.

        When memory runs out, the passes through the net take half the rows from there on.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
        labels : Tensor of shape (n,), optional
        out : Tensor of shape (n, k, n_params), optional
            Where to write; by default one place for each part in turn.
        batch_size : int, optional
            Rows of a pass through the net; by default all.

        Yields
        ------
        rows : slice
        forward : ForwardPass of these rows
        gradients : Tensor of shape (len(rows), k, n_params)
            Valid until the next is asked for.
        """
        k = 1 if labels is not None else self.n_labels
        at_once = _PART_BYTES.get(self.device.type, _PART_BYTES_ELSEWHERE)
        step = max(1, at_once // (k * self._gradient_bytes))
        start, size = 0, min(len(X), batch_size or len(X))
        while start < len(X):
            stop = min(start + size, len(X))
            try:
                of_batch = None if labels is None else labels[start:stop]
                place = None if out is None else out[start:stop]
                for rows, forward, gradients in self._batch_parts(X[start:stop], of_batch, place, min(step, size)):
                    yield slice(start, start + rows), forward, gradients
                    start += rows
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    needed = self.memory(1, k > 1)
                    raise MemoryError(f"a pass of a single row takes {self._beside_free(needed)}") from error
            # Outside of the handler, where the error no longer holds what the failed pass had allocated.
            size = max(1, size // 2)
            _free_memory(self.device)

    def _batch_parts(
        self, X: np.ndarray, labels: Tensor | None, out: Tensor | None, step: int
    ) -> Iterator[tuple[int, ForwardPass, Tensor]]:
        """Yield the numbers of rows, the passes and the gradients of the parts of one batch."""
        with self.computing():
            forward = self.forward(X, labels)
            shape = (min(step, len(X)), forward.cotangents.shape[1], self.n_params)
            lent = self.scratch.lent("gradients", shape, self.feature_dtype, self.device)
        with lent if out is None else nullcontext() as place:
            for start in range(0, len(X), step):
                rows = slice(start, min(start + step, len(X)))
                with self.computing():
                    part = forward.rows(rows)
                    gradients = place[: rows.stop - start] if out is None else out[rows]
                    self.write(part, gradients)
                yield rows.stop - start, part, gradients

    def write(self, forward: ForwardPass, out: Tensor) -> None:
        """Write the gradients of a pass of n rows and k scalars to `out`, of shape (n, k, n_params)."""
        write_gradients(forward, self.rules_for(forward), self.places(out))

    def rules_for(self, forward: ForwardPass) -> Sequence[ParameterRule]:
        """Return `rules`, or the loop where rows took another way through the net than those that decided on these."""
        if set(self._signature) <= set(forward.calls):
            return self.rules
        return [ParameterRule(rule.name, loop.__name__, "called otherwise") for rule in self.rules]

    def places(self, out: Tensor) -> dict[str, Tensor]:
        """Return views of shape (n, k, ``*parameter.shape``) on gradients of shape (n, k, n_params)."""
        return {block.name: out[..., block.slice].unflatten(2, block.shape or (1,)) for block in self.blocks}

    def forward(self, X: np.ndarray, labels: Tensor | None = None) -> ForwardPass:
        """Return a pass of the rows `X` for the numbers `labels` of one scalar each, or for all scalars."""
        inputs = self.inputs(X)
        forward = forward_pass(self.apply, self.module, self._signature, inputs, self.scalar, labels, self.scratch)
        if self.device.type == "cpu":
            check_finite(forward.outputs)  # elsewhere it would wait for the device; NaN shows in the gradients
        return forward.like(self._signature) or replace(forward, calls={})

    def inputs(self, X: np.ndarray, plain: bool = False) -> Tensor:
        """Return rows as the net takes them, on the device; `plain` in the usual order of memory."""
        inputs = torch.from_numpy(np.array(X, order="C"))
        if self.device.type == "cuda":
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
        inputs = inputs.to(self.device, self._input_dtype)
        last = self._channels_last and not plain
        return inputs.contiguous(memory_format=torch.channels_last) if last else inputs

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Differentiate in whatever mode the caller is; on CUDA devices round to TF32 only if that was asked for."""
        switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv) if self.device.type == "cuda" else ()
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "tf32" if self._dtype == "tf32" else "ieee"
            with torch.inference_mode(False):
                yield
        finally:
            for switch, value in zip(switches, before):
                switch.fp32_precision = value

    def memory(self, n: int, all_labels: bool = True, features: int | None = None) -> int:
        """Return the bytes that a pass of `n` rows takes at most, for one scalar a row or for all.

        They are those of the pass through the net, of what comes back to the layers, of the gradients of `features`
        rows, by default `n`, and of what does not depend on rows: torch holds the weights once more in the order of
        memory that it computes in, and some scratch.
        """
        k = self.n_labels if all_labels else 1
        features = n if features is None else features
        return self._constant_bytes + n * (self.row_bytes + k * self.label_bytes) + features * k * self._gradient_bytes

    def affordable_rows(self, budget: float) -> int:
        """Return how many rows, for all scalars, fit into `budget` bytes, one at least."""
        return max(1, int((budget - self.memory(0)) // (self.memory(1) - self.memory(0))))

    @property
    def _gradient_bytes(self) -> int:
        return self.n_params * self.feature_dtype.itemsize

    @property
    def _constant_bytes(self) -> int:
        return sum(p.nbytes for p in self.module.parameters()) + _SCRATCH_BYTES

    def _beside_free(self, n_bytes: int) -> str:
        """Return a number of bytes beside those that are free, and the way out."""
        gib, free = 2.0**30, free_bytes(self.device)
        largest = max(self.blocks, key=lambda block: block.size)
        text = f"{n_bytes / gib:.2f} GiB on {self.device}, for {self.n_params} parameters and {self.n_labels} labels"
        if free is not None:
            fit = int(self.n_params * free / n_bytes)
            text += f"; {free / gib:.2f} GiB are free, enough for about {fit} parameters, or for fewer rows at a time"
        return f"{text}. Choose parameters by `layers`: the largest, {largest.name!r}, has {largest.size} entries."

    def _try_out(self, X: np.ndarray) -> None:
        """Find out, on a few rows, what the net takes and returns, and by which rules its gradients are right."""
        refuse_batch_statistics(self.module)
        self._channels_last = False
        outputs = self._first_outputs(X)
        self._channels_last = self._may_be_channels_last(X, outputs)
        refuse_probabilities(self.module, outputs, self.scalar)
        self.n_labels = cotangents(self.scalar, outputs).shape[1]
        labels = torch.arange(len(X), device=self.device) % self.n_labels
        forward = self._precise_forward(X, labels)
        refuse_mixing(forward, self.scalar)
        self.rules = choose_rules(forward, [block.name for block in self.blocks])
        by_layer = {forward.layer_of(rule.name) for rule in self.rules if rule.rule in LAYER_RULES}
        self._signature = {layer: by_row for layer, by_row in forward.signature().items() if layer in by_layer}
        self.row_bytes, self.label_bytes = self._measured_bytes(X, labels)
        self.rounding_error = self._measured_error(X, labels, forward) if self._dtype in ("bfloat16", "tf32") else None

    def _first_outputs(self, X: np.ndarray) -> Tensor:
        """Return the outputs of the first rows, after finding out whether the net takes numbers or indices."""
        try:
            return self.outputs(X)
        except ValueError:
            raise
        except Exception as error:  # whatever a user's forward may raise
            if is_out_of_memory(error):
                raise
            if X.dtype.kind in "iu" and self._input_dtype.is_floating_point:
                self._input_dtype = torch.int64
                return self._first_outputs(X)
            way_out = f"Give it samples of the shape it was made for; they are cast to {self._input_dtype}."
            if "same device" in str(error):
                way_out = "Keep what it makes in its forward on the device of its input, or leave `device` out."
            if self.dtype in (torch.float16, torch.bfloat16):
                way_out = "Where the device lacks this precision, call net.float() or choose another device."
            raise ValueError(
                f"net cannot compute samples of shape {X.shape[1:]} in {self.dtype} on {self.device}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}. {way_out}"
            ) from error

    def _may_be_channels_last(self, X: np.ndarray, outputs: Tensor) -> bool:
        """Return whether the net takes images in the order of memory in which convolutions are fastest."""
        convolves = any(isinstance(layer, _ConvNd) for layer in self.module.modules())
        wanted = self.device.type == "cpu" or self._dtype in ("bfloat16", "tf32")  # elsewhere float32 has no such form
        if X.ndim != 4 or not convolves or not wanted:
            return False
        self._channels_last = True
        try:
            return torch.allclose(self.outputs(X), outputs, rtol=1e-2, atol=1e-2 * outputs.abs().max().item())
        except Exception:  # a forward that relies on the other order, as `view` does
            return False

    def _precise_forward(self, X: np.ndarray, labels: Tensor) -> ForwardPass:
        """Return a pass in double precision, where rounding does not pass for error, if the net can be computed so."""
        layers = dict.fromkeys(layer for block in self.blocks for layer in (block.layer, *_around(block.layer)))
        inputs = self.inputs(X)

        def run(module: nn.Module, inputs: Tensor) -> ForwardPass:
            return forward_pass(self.apply, module, layers, inputs, self.scalar, labels, keep_graph=True)

        try:
            precise = shared_copy(self.net, self._target).double()
            return run(precise, inputs.double() if inputs.is_floating_point() else inputs)
        except (RuntimeError, TypeError):  # a net with a precision of its own inside, a device without this one
            return run(self.module, inputs)

    def _measured_bytes(self, X: np.ndarray, labels: Tensor) -> tuple[int, int]:
        """Return the memory that a row takes in a pass through the net, and that each of its scalars adds."""
        shared = {p.untyped_storage().data_ptr() for p in self.module.parameters()}
        saved = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in shared:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            forward = self.forward(X, labels)
        deltas = [delta for calls in forward.calls.values() for call in calls for delta in call.deltas]
        # The cotangents of several scalars are joined; transforms return gradients that are then put in their place.
        label_bytes = 2 * sum(delta.nbytes for delta in deltas) // len(X)
        general = {rule.name for rule in self.rules if rule.rule.endswith("_transform")}
        label_bytes += 2 * sum(b.size for b in self.blocks if b.name in general) * self.feature_dtype.itemsize
        # As much again for what is made and dropped on the way.
        return 2 * sum(saved.values()) // len(X), label_bytes

    def _measured_error(self, X: np.ndarray, labels: Tensor, precise: ForwardPass) -> float:
        found = self(X, labels).unsqueeze(1)
        truth = torch.empty_like(found, dtype=precise.outputs.dtype)
        write_gradients(precise, self.rules, self.places(truth))
        errors = []
        for block in self.blocks:
            mine, true = found[..., block.slice].to(truth.dtype), truth[..., block.slice]
            errors.append(
                ((mine - true).abs().amax() / true.abs().amax().clamp(min=torch.finfo(true.dtype).tiny)).item()
            )
        return max(errors)


def _around(layer: str) -> list[str]:
    """Return the names of the modules around a layer, without that of the net."""
    parts = layer.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
