"""The trial: what the engine has to know of a net is found out on a few rows.

An engine and rows enter; the engine leaves with the kind of input, the number of scalars, the rules, and the memory
that a row takes.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._forward import ForwardPass, forward_pass
from ._memory import PeakBytes, is_out_of_memory
from ._outputs import NotFiniteError, cotangents
from ._refusals import (
    refuse_batch_statistics,
    refuse_foreign_parameters,
    refuse_mixing,
    refuse_mixing_of_many,
    refuse_probabilities,
)
from ._rules import LAYER_RULES, choose_rules, unused, write_gradients
from ._sharing import as_rows

if TYPE_CHECKING:
    from ._engine import GradientEngine

# Rows that decide, and parameters from which on they are fewer: their gradients are held in double.
_ROWS, _ROWS_OF_MANY, _MANY = 4, 2, 10**7
_FEW_LABELS = 3  # whose backward passes take no longer one by one than together
_ROWS_ALONE = 16  # whose outputs, of few parameters, are compared with those of a batch: some nets mix some rows alone


def try_out(engine: "GradientEngine", sample: np.ndarray) -> None:
    """Tell the engine what its net takes and returns, and by which rules its gradients are right."""
    n_rows = _ROWS if engine.n_params < _MANY else _ROWS_OF_MANY
    sample = as_rows(sample)
    if not len(sample):
        raise ValueError("sample has no rows: a few rows of data decide how gradients are computed.")
    chosen = np.linspace(0, len(sample) - 1, n_rows, dtype=int)
    X, engine.n_axes = sample[chosen], sample.ndim
    refuse_batch_statistics(engine.module)
    engine.channels_last = False
    try:
        outputs = _first_outputs(engine, X)
    except NotFiniteError as error:
        raise NotFiniteError(sorted({int(chosen[row]) for row in error.rows})) from None
    engine.channels_last = _may_be_channels_last(engine, X, outputs)
    engine.n_labels = cotangents(engine.scalar, outputs).shape[1]
    labels = torch.arange(len(X), device=engine.device) % engine.n_labels
    forward = precise_forward(engine, X, labels)
    refuse_foreign_parameters(engine.net, forward.uses)
    refuse_probabilities(engine.module, forward.outputs, engine.scalar)
    refuse_mixing(forward, engine.scalar)
    if engine.n_params < _MANY:
        _compare_many(engine, sample)
    for at_steps in (True, False):
        engine.rules, engine.ways = choose_rules(forward, [block.name for block in engine.blocks], at_steps)
        by_layer = {forward.layer_of(rule.name) for rule in engine.rules if rule.rule in LAYER_RULES}
        engine.signature = {layer: by_row for layer, by_row in forward.signature().items() if layer in by_layer}
        tried, engine.row_bytes, engine.label_bytes = _measured_pass(engine, X, labels)
        if tried.takes(engine.ways):  # the steps may be others in the engine's precision
            break
    of_calls = [rule.name for rule in engine.rules if rule.rule in (*LAYER_RULES, unused.__name__)]
    engine.uses, engine.transform_bytes = engine.uses_of(tried, of_calls), _transform_bytes(engine, tried)
    if engine.n_labels > _FEW_LABELS:
        engine.together_bytes = _together_bytes(engine, X)
    engine.rounding_error = (
        _measured_error(engine, X, labels, forward) if engine.precision in ("bfloat16", "tf32") else None
    )


def _compare_many(engine: "GradientEngine", sample: np.ndarray) -> None:
    X = sample[np.unique(np.linspace(0, len(sample) - 1, _ROWS_ALONE, dtype=int))]
    with engine.computing(), torch.no_grad():
        parts = [X, *(X[i : i + 1] for i in range(len(X)))]
        together, *alone = (engine.apply(engine.module, engine.inputs(part)).float() for part in parts)
    rounded = engine.precision in ("bfloat16", "tf32") or torch.finfo(engine.dtype).bits < 32
    refuse_mixing_of_many(together, torch.cat(alone), 0.1 if rounded else 1e-3)


def _first_outputs(engine: "GradientEngine", X: np.ndarray) -> Tensor:
    """Return the outputs of the first rows, after finding out which numbers the net takes, or whether indices."""
    first = next(p.dtype for p in engine.module.parameters() if p.is_floating_point())
    kinds = [first, engine.dtype]
    if X.dtype.kind in "iu":
        # Numbers of 16 bits are no exact indices, which a net may make of its input by itself.
        kinds.insert(0 if torch.finfo(first).bits < 32 else 2, torch.int64)
    for engine.input_dtype in dict.fromkeys(kinds):
        try:
            return engine.outputs(X)
        except ValueError:
            raise
        except Exception as error:  # whatever a user's forward may raise
            if is_out_of_memory(error):
                raise
            failed = error
    way_out = f"Give it samples of the shape it was made for; they are cast to {engine.input_dtype}."
    if "same device" in str(failed):
        way_out = "Keep what it makes in its forward on the device of its input, or leave `device` out."
    if engine.dtype in (torch.float16, torch.bfloat16):
        way_out = "Where the device lacks this precision, call net.float() or choose another device."
    raise ValueError(
        f"net cannot compute samples of shape {X.shape[1:]} in {engine.dtype} on {engine.device}: "
        f"{type(failed).__name__}: {' '.join(str(failed).split())}. {way_out}"
    ) from failed


def _may_be_channels_last(engine: "GradientEngine", X: np.ndarray, outputs: Tensor) -> bool:
    """Return whether the net takes images in the order of memory in which convolutions are fastest."""
    convolves = any(isinstance(layer, _ConvNd) for layer in engine.module.modules())
    # On other devices convolutions in float32 have no such form.
    is_faster = engine.device.type == "cpu" or engine.precision in ("bfloat16", "tf32")
    if X.ndim != 4 or not convolves or not is_faster:
        return False
    engine.channels_last = True
    try:
        return torch.allclose(engine.outputs(X), outputs, rtol=1e-2, atol=1e-2 * outputs.abs().max().item())
    except Exception as error:  # a forward that relies on the other order, as `view` does
        if is_out_of_memory(error):
            raise
        return False


def precise_forward(engine: "GradientEngine", X: np.ndarray, labels: Tensor) -> ForwardPass:
    """Return a pass in double precision, where rounding does not pass for error, if the net can be computed so."""
    layers = dict.fromkeys(layer for block in engine.blocks for layer in (block.layer, *_around(block.layer)))
    inputs = engine.inputs(X)
    if engine.precision == "bfloat16" and inputs.is_floating_point():
        inputs = torch.tensor(X, dtype=torch.float64, device=engine.device)  # rounding the input is part of the error

    def run(module: nn.Module, inputs: Tensor) -> ForwardPass:
        forward, mirrored = (
            forward_pass(
                engine.apply, module, layers, rows, engine.scalar, of_rows, keep_graph=rows is inputs, any_order=True
            )
            for rows, of_rows in ((inputs, labels), (inputs.flip(0), labels.flip(0)))
        )
        return forward.beside(mirrored)

    try:
        precise = engine.copy_of_net().double()
        return run(precise, inputs.double() if inputs.is_floating_point() else inputs)
    except (RuntimeError, TypeError) as error:  # a net with a precision of its own inside, a device without this one
        if is_out_of_memory(error):
            raise
        return run(engine.module, engine.inputs(X))


def _measured_pass(engine: "GradientEngine", X: np.ndarray, labels: Tensor) -> tuple[ForwardPass, int, int]:
    """Return a pass as the engine makes it, the memory that a row takes in it, and that each of its scalars adds."""
    shared = {p.untyped_storage().data_ptr() for p in engine.module.parameters()}
    saved = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in shared:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        forward = engine.forward(X, labels)
    # The cotangents of several scalars are joined. As much again for what is made and dropped on the way.
    return forward, 2 * sum(saved.values()) // len(X), 2 * sum(delta.nbytes for delta in _deltas(forward)) // len(X)


def _together_bytes(engine: "GradientEngine", X: np.ndarray) -> int:
    """Return the memory of a row and scalar in a backward pass for several scalars, or 0 where none can go for several.

    A few outputs tell: there may be thousands.
    """

    def one_pass(scalars: int) -> ForwardPass:
        inputs, layers = engine.inputs(X, plain=True), engine.signature
        axes = {name: axis for name, (axis, _) in engine.ways.items()}
        return forward_pass(engine.apply, engine.module, layers, inputs, _few, scalars_a_pass=scalars, axes=axes)

    expected = _deltas(one_pass(1))
    try:
        with PeakBytes() as peak:
            forward = one_pass(_FEW_LABELS + 1)
    except Exception:  # of steps that go back for one scalar alone, which may be the user's
        return 0
    found, k = _deltas(forward), forward.cotangents.shape[1]
    same = len(found) == len(expected) and all(map(_differ_by_rounding, found, expected))
    # As much again for what is made inside of the steps.
    return max(1, (2 * peak.n_bytes // len(X) - engine.row_bytes) // k) if same else 0


def _few(outputs: Tensor) -> Tensor:
    return outputs[:, : _FEW_LABELS + 1]


def _deltas(forward: ForwardPass) -> list[Tensor]:
    of_calls = [delta for calls in forward.calls.values() for call in calls if call for delta in call.deltas]
    return of_calls + [step.deltas for steps in forward.steps.values() for step in steps or ()]


def _differ_by_rounding(found: Tensor, truth: Tensor) -> bool:
    rounding = torch.finfo(truth.dtype).eps ** 0.5
    return not truth.numel() or bool((found - truth).abs().amax() <= rounding * truth.abs().amax())


def _transform_bytes(engine: "GradientEngine", forward: ForwardPass) -> int:
    """Return the memory that `torch.func` takes for a row and one of its scalars."""
    rules = [rule for rule in engine.rules if rule.rule.endswith("_transform")]
    if not rules:
        return 0
    place = torch.empty(1, 1, engine.n_params, dtype=engine.feature_dtype, device=engine.device)
    with PeakBytes() as peak:
        write_gradients(forward.rows(slice(1)), rules, engine.places(place))
    return peak.n_bytes


def _measured_error(engine: "GradientEngine", X: np.ndarray, labels: Tensor, precise: ForwardPass) -> float:
    found = engine(X, labels).unsqueeze(1)
    truth = torch.empty_like(found, dtype=precise.outputs.dtype)
    precise = precise.at_steps({name: axis for name, (axis, _) in engine.ways.items()})
    write_gradients(precise, engine.rules, engine.places(truth))
    errors = []
    for block in engine.blocks:
        mine, true = found[..., block.slice].to(truth.dtype), truth[..., block.slice]
        errors.append(((mine - true).abs().amax() / true.abs().amax().clamp(min=torch.finfo(true.dtype).tiny)).item())
    return max(errors)


def _around(layer: str) -> list[str]:
    """Return the names of the modules around a layer, without that of the net."""
    parts = layer.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
