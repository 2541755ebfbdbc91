"""Per-sample gradients of a trained net: engine, selection, scaling and the array that computes them when asked."""

from ._array import GradientArray
from ._blocks import Block
from ._check import GradientCheck, check_gradients
from ._engine import DTYPES, GradientEngine
from ._entry_scores import VIEWS, add_powers, add_survivals, views
from ._factored import FactoredGradients
from ._factored_features import FactoredFeatures
from ._features import GradientFeatures
from ._fisher import FISHER_SCALES, FisherStatistics, Whitening
from ._forward import leaves
from ._gram import GradientGram, GradientTile
from ._group_norm import guard_group_norms
from ._mask import as_bool, as_mask
from ._memmap import GradientMemmap, to_memmap
from ._memory import free_bytes, is_out_of_memory, require_memory
from ._moments import ScoreMoments
from ._names import by_torchs_names, masked_weight, owner, plain_name
from ._outputs import (
    SCALARS,
    NotFiniteError,
    as_table,
    check_finite,
    counted_from,
    label_probabilities,
    predicted_labels,
    two_logits,
)
from ._passes import over_batches, progress
from ._projection import Projection
from ._refusals import ends_with_sigmoid, refuse_probabilities
from ._ridge import KernelRidge, NotPositiveDefiniteError
from ._rules import EngineReport, ParameterRule
from ._scaling import SCALES, Scaler, ScaleStatistics
from ._selection import SELECTIONS
from ._sharing import check_device, own_copy, packed, shared_copy, to_device

__all__ = [
    "DTYPES",
    "FISHER_SCALES",
    "SCALARS",
    "SCALES",
    "SELECTIONS",
    "VIEWS",
    "Block",
    "EngineReport",
    "FactoredFeatures",
    "FactoredGradients",
    "FisherStatistics",
    "GradientArray",
    "GradientCheck",
    "GradientEngine",
    "GradientFeatures",
    "GradientGram",
    "GradientMemmap",
    "GradientTile",
    "KernelRidge",
    "NotFiniteError",
    "NotPositiveDefiniteError",
    "ParameterRule",
    "Projection",
    "ScaleStatistics",
    "Scaler",
    "ScoreMoments",
    "Whitening",
    "add_powers",
    "add_survivals",
    "as_bool",
    "as_mask",
    "as_table",
    "by_torchs_names",
    "check_device",
    "check_finite",
    "check_gradients",
    "counted_from",
    "ends_with_sigmoid",
    "free_bytes",
    "guard_group_norms",
    "is_out_of_memory",
    "label_probabilities",
    "leaves",
    "masked_weight",
    "over_batches",
    "own_copy",
    "owner",
    "packed",
    "plain_name",
    "predicted_labels",
    "progress",
    "refuse_probabilities",
    "require_memory",
    "shared_copy",
    "to_device",
    "to_memmap",
    "two_logits",
    "views",
]
