"""skorch's AccelerateMixin: one process trains as without it, two as one on batches twice as large."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from skorch.utils import noop
from torch import nn

from sklearn_gradspace import ECOptClassifier, ECOptRegressor, GradientFeaturizer, GradNetClassifier

accelerate = pytest.importorskip("accelerate")
X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)


def features(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return GradientFeaturizer(net, **options).fit_transform(X)


@pytest.mark.parametrize("base, options", [
    (GradNetClassifier, {}), (GradNetClassifier, {"early_stopping": True, "schedule": "cosine"}),
    (GradNetClassifier, {"views": "all", "base_logits": True}), (ECOptClassifier, {"device": None}),
    (ECOptRegressor, {"device": None}),
], ids=["GradNet", "stopping", "views", "classifier", "regressor"])  # fmt: skip
def test_one_process_trains_as_without_it(base, options):
    from skorch.hf import AccelerateMixin

    class Accelerated(AccelerateMixin, base):
        pass

    lazy = features(percentile=100, power=None, scale="layer") if "views" in options else features()
    data = lazy if base is GradNetClassifier else X
    plain = base(max_epochs=3, random_state=0, **options).fit(data, y)
    accelerator = accelerate.Accelerator(cpu=True)
    fitted = Accelerated(
        max_epochs=3, random_state=0, accelerator=accelerator, callbacks__print_log__sink=noop, **options
    ).fit(data, y)
    np.testing.assert_array_equal(fitted.predict(data), plain.predict(data))
    for mine, theirs in zip(fitted.module_.parameters(), plain.module_.parameters()):
        assert torch.equal(mine, theirs)
    if base is not GradNetClassifier:
        assert fitted.scale_graph_.n_units == plain.scale_graph_.n_units


TWO = """
    import numpy as np, torch
    from accelerate import Accelerator
    from skorch.hf import AccelerateMixin
    from skorch.utils import noop
    from test_accelerate import ECOptClassifier, GradNetClassifier, X, features, nn, y

    class Accelerator(Accelerator):
        def prepare(self, *args, **kwargs):
            parameters = args[0].parameters() if isinstance(args[0], nn.Module) else args
            return super().prepare(*args, **kwargs) if list(parameters) else args[0]

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    options = {"max_epochs": 2, "random_state": 0, "iterator_train__shuffle": False}
    factored = features(percentile=100, power=None, scale="layer")
    for base, data, more in (
        (GradNetClassifier, features(), {"views": "all"}), (GradNetClassifier, factored, {"views": "all"}),
        (ECOptClassifier, X, {"device": None}),
    ):
        class Accelerated(AccelerateMixin, base):
            pass

        plain = base(batch_size=30, **options, **more).fit(data, y)
        half = Accelerated(
            batch_size=15, accelerator=accelerator, callbacks__print_log__sink=noop, **options, **more
        ).fit(data, y)
        for mine, theirs in zip(half.module_.parameters(), plain.module_.parameters()):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert (half.predict(data) == plain.predict(data)).mean() > 0.98
    assert accelerator.num_processes == 2
    if accelerator.is_main_process:
        print("equal")
    accelerator.end_training()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="starts processes that find each other as Linux' do")
def test_two_processes_train_as_one_on_batches_of_twice_the_size(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TWO))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.split() == ["equal"], done.stderr
