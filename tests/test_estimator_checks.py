"""scikit-learn's own checks, on every public estimator in all of its outputs: all, but one of random landmarks."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_gradspace import (
    ECOptClassifier,
    ECOptRegressor,
    EdgeImportance,
    GradientFeaturizer,
    GradientKernel,
    GradientKernelClassifier,
    GradNetClassifier,
)


@pytest.mark.filterwarnings("ignore:nothing was learnt")  # its targets are random, its input is unscaled
@parametrize_with_checks(
    [
        ECOptClassifier(),
        ECOptClassifier(method="path", optimizer="adam", lr=0.01),
        ECOptRegressor(),
        ECOptRegressor(method="path", path_penalty=1e-4),
        EdgeImportance(),
        EdgeImportance(criterion="survival", labels="all", per_class=True),
        EdgeImportance(criterion="fisher", labels="sampled", layers="all"),
        GradientFeaturizer(),
        GradientFeaturizer(output="dense"),
        GradientFeaturizer(output="csr"),
        GradientFeaturizer(percentile=100, scale=None, power=None, layers="all"),
        GradientFeaturizer(scale="rms", n_jobs=2),
        GradientFeaturizer(scale="layer", batch_size=3),
        GradientKernel(),
        GradientKernel(n_components=5),
        GradientKernel(normalize="layer", layers="all"),
        GradientKernelClassifier(),
        GradientKernelClassifier(n_components=5),
        GradientKernelClassifier(normalize="layer", layers="all"),
        GradientKernelClassifier(base_output=False),
        GradNetClassifier(),
        GradNetClassifier(activation="square", structure="full", regularization=1e-4),
        GradNetClassifier(views="all", schedule="cosine", regularization=1e-4, l1_ratio=0.5, label_smoothing=0.01),
    ],
    expected_failed_checks=lambda estimator: (
        {"check_sample_weight_equivalence_on_dense_data": "landmarks are drawn among rows, however often they come"}
        if getattr(estimator, "n_components", None) and isinstance(estimator, GradientKernelClassifier)
        else {}
    ),
)
def test_check(estimator, check):
    check(estimator)
