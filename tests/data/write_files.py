"""Writes the files beside it, which a test of later versions loads: ``python tests/data/write_files.py``."""

import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_gradspace import ECOptClassifier, GradientFeaturizer, GradNetClassifier, save


def main() -> None:
    """Fit two models to iris, save them, and note what they predict for every tenth row."""
    X, y = load_iris(return_X_y=True)
    labels = np.array(["setosa", "versicolor", "virginica"])[y]
    models = {
        "pipeline": make_pipeline(
            StandardScaler(),
            GradientFeaturizer(random_state=0),
            GradNetClassifier(hidden_sizes=8, max_epochs=10, random_state=0),
        ).fit(X, labels),
        "ecopt": ECOptClassifier((16,), max_epochs=10, random_state=0).fit(X, y),
    }
    folder = Path(__file__).parent
    expected = {}
    for name, model in models.items():
        save(model, folder / f"{name}_1.safetensors")
        expected[name] = {
            "predict": model.predict(X[::10]).tolist(),
            "predict_proba": model.predict_proba(X[::10]).tolist(),
        }
    (folder / "expected_1.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
