"""What the parameters of GradientFeaturizer may be.

A featurizer enters; an error that says what to do leaves where a parameter, by itself or beside another, means nothing.
"""

from numbers import Integral, Real
from os import PathLike
from pathlib import Path

import numpy as np

from ._parameter_checks import check_choices, check_flags, check_n_jobs, check_seed, check_verbose
from .gradients import DTYPES, FISHER_SCALES, SCALARS, SCALES, SELECTIONS, check_device
from .gradients._user import warn_user

_OUTPUTS = ("lazy", "dense", "csr", "memmap")
_LABELS = ("all", "predicted")


def check_parameters(featurizer) -> None:
    """Raise an error that names the first parameter of a GradientFeaturizer that means nothing."""
    choices = {
        "scale": (*SCALES, *FISHER_SCALES),
        "selection": SELECTIONS,
        "dtype": DTYPES,
        "scalar": SCALARS,
        "output": _OUTPUTS,
        "labels": _LABELS,
    }
    check_choices(featurizer, choices)
    check_gradient_parameters(featurizer)
    check_flags(featurizer, "compile")
    check_n_jobs(featurizer.n_jobs)
    if featurizer.labels == "predicted" and callable(featurizer.scalar):
        raise ValueError(
            "labels='predicted' needs scalar='cross_entropy', 'log_probability' or 'logit': which of the scalars "
            "of a function belongs to the predicted label is not known."
        )
    if featurizer.scale in FISHER_SCALES and featurizer.scalar not in ("cross_entropy", "log_probability"):
        raise ValueError(
            f"scale={featurizer.scale!r} needs scalar='cross_entropy' or 'log_probability': its expectation is over "
            "labels, by their probabilities."
        )
    if featurizer.power is not None and not (_is_real(featurizer.power) and 0 < featurizer.power < np.inf):
        raise ValueError(f"power={featurizer.power!r} is neither a positive number nor None.")
    projection = featurizer.projection
    is_count = isinstance(projection, Integral) and not isinstance(projection, bool) and projection > 0
    is_share = isinstance(projection, Real) and not isinstance(projection, Integral) and 0 < projection < 1
    if projection is not None and not is_count and not is_share:
        raise ValueError(
            f"projection={projection!r} is neither a positive number of dimensions, a share in (0, 1), nor None."
        )
    if featurizer.output == "memmap" and not isinstance(featurizer.output_dir, (str, PathLike)):
        raise ValueError(
            f"output='memmap' needs a directory for its files, but output_dir={featurizer.output_dir!r}: "
            "GradientFeaturizer(output='memmap', output_dir='features')."
        )
    if featurizer.output == "memmap":
        path = Path(featurizer.output_dir)
        files = [str(part) for part in (path, *path.parents) if part.is_file()]
        if files:
            raise ValueError(f"output_dir={featurizer.output_dir!r} is no directory: {files[0]} is a file.")
    if featurizer.augment is not None and not callable(featurizer.augment):
        raise TypeError(f"augment={featurizer.augment!r} is neither None nor a function of rows and a NumPy generator.")
    if featurizer.augment is not None and featurizer.output != "lazy":
        raise ValueError(
            f"augment needs output='lazy': with output={featurizer.output!r} features are computed once. Leave augment "
            "out, or transform augmented rows."
        )


def warn_of_unused_directory(featurizer) -> None:
    """Warn of a directory that nothing is written to."""
    if featurizer.output_dir is not None and featurizer.output != "memmap":
        warn_user(
            f"output_dir={featurizer.output_dir!r} is not used with output={featurizer.output!r}: files are written "
            "with output='memmap'.",
        )


def warn_of_small_percentile(percentile) -> None:
    """Warn of what is rather a share than a percentage."""
    if percentile < 1:
        warn_user(
            f"percentile={percentile} keeps {percentile}% of the entries: it is in percent, percentile="
            f"{100 * percentile:g} keeps {100 * percentile:g}%.",
        )


def check_gradient_parameters(estimator) -> None:
    """Raise an error for what means nothing among the parameters of every estimator that selects gradients."""
    percentile, size = estimator.percentile, estimator.batch_size
    if not _is_real(percentile) or not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile!r} is not in (0, 100]: it is the percentage of entries kept.")
    counted = isinstance(size, Integral) and not isinstance(size, bool) and size >= 1
    if not counted and not (isinstance(size, str) and size == "auto"):
        raise ValueError(f"batch_size={size!r} is neither a positive integer nor 'auto'.")
    if estimator.net_output is not None and not callable(estimator.net_output):
        raise TypeError("net_output is neither None nor a function that takes what the net returns.")
    check_device(estimator.device)
    check_seed(estimator.random_state)
    check_verbose(estimator.verbose)


def _is_real(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
