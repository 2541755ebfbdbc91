"""
Training from an unbalanced start
=================================

A hidden unit's incoming weights times c and its outgoing weights divided by c: a ReLU net computes the same as before.
But SGD and Adam then train it in another way, and for a wide spread of such factors badly. Training in
equivalent-class space does not see them.

A net with two hidden layers of 32 units learns the digits, each unit scaled by its own random factor between
:math:`10^{-a}` and :math:`10^a` before. Every contender has several learning rates to choose from, by the accuracy
on validation rows; everything is repeated four times, with other splits, nets and factors.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_gradspace import ECOptClassifier
from sklearn_gradspace.modules import MLP
from sklearn_gradspace.optim import ECOptimizer
from sklearn_gradspace.pathspace import balance, rescale, scale_graph

X, y = load_digits(return_X_y=True)
X, y = torch.from_numpy(X / 16).float(), torch.from_numpy(y)
spreads, n_repetitions = (0, 1, 2), 4


def start(a, seed):
    """Return a new net whose units are scaled by factors from 10^-a to 10^a."""
    torch.manual_seed(seed)
    net = MLP(64, 10, hidden_layer_sizes=(32, 32))
    return rescale(net, 10 ** (a * (2 * torch.rand(scale_graph(net).n_units) - 1)))


# %%
# Beside SGD and Adam there is a third control: SGD from the balanced twin of the start, which is rescaled once, before
# training, and then trained as usual. EC-Opt has SGD, or Adam, inside. SGD has a momentum of 0.9 everywhere.


def sgd(net, lr):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)


def adam(net, lr):
    return torch.optim.Adam(net.parameters(), lr=lr, fused=True)


def sgd_from_the_balanced_twin(net, lr):
    return sgd(balance(net), lr)


def ecopt_sgd(net, lr):
    return ECOptimizer(net, torch.optim.SGD, lr=lr, momentum=0.9)


def ecopt_adam(net, lr):
    return ECOptimizer(net, torch.optim.Adam, lr=lr, fused=True)


of_sgd, of_adam = (0.0001, 0.0003, 0.001, 0.01, 0.1, 0.2), (0.001, 0.003, 0.01, 0.03)
contenders = {
    "SGD": (sgd, of_sgd),
    "Adam": (adam, of_adam),
    "SGD, balanced once": (sgd_from_the_balanced_twin, of_sgd),
    "EC-Opt, SGD inside": (ecopt_sgd, of_sgd),
    "EC-Opt, Adam inside": (ecopt_adam, of_adam),
}


def train(net, optimizer, rows, n_epochs=20):
    """Train a net on some rows of the digits."""
    for _ in range(n_epochs):
        for batch in rows[torch.randperm(len(rows))].split(64):
            loss = torch.nn.functional.cross_entropy(net(X[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def accuracy(net, rows):
    """Return the share of rows whose label is predicted."""
    with torch.no_grad():
        return (net(X[rows]).argmax(1) == y[rows]).float().mean().item()


results = {}  # (n_rates, n_repetitions, 2): accuracies on validation and test rows
for name, (make_optimizer, rates) in contenders.items():
    for a in spreads:
        scores = np.zeros((len(rates), n_repetitions, 2))
        for seed in range(n_repetitions):
            rows, test = train_test_split(torch.arange(len(y)), test_size=0.5, stratify=y, random_state=seed)
            rows, valid = train_test_split(rows, test_size=0.3, stratify=y[rows], random_state=seed)
            for i, lr in enumerate(rates):
                net = start(a, seed)
                train(net, make_optimizer(net, lr=lr), rows)
                scores[i, seed] = accuracy(net, valid), accuracy(net, test)
        results[name, a] = scores

# %%
# Accuracies on the test rows, with the rate that was best on the validation rows, and the standard deviation over the
# repetitions:

best = {}
for key, scores in results.items():
    best[key] = scores[scores[..., 0].argmax(0), np.arange(n_repetitions), 1]  # (n_repetitions,)
print(f"{'factors':20}" + "".join(f"{f'10^±{a}' if a else 'none':>16}" for a in spreads))
for name in contenders:
    print(f"{name:20}" + "".join(f"{best[name, a].mean():>8.3f} ± {best[name, a].std():.3f}" for a in spreads))

# %%
# On the right are the accuracies over the learning rate, from the widest spread of factors.

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
styles = dict(zip(contenders, [("0.6", "o-"), ("0.3", "s-"), ("0.6", "^--"), ("C0", "o-"), ("C1", "s-")]))
for i, (name, (_, rates)) in enumerate(contenders.items()):
    (color, style), a = styles[name], spreads[-1]
    values = np.array([best[name, a] for a in spreads])  # (n_spreads, n_repetitions)
    at = np.array(spreads) + 0.04 * (i - 2)
    left.errorbar(at, values.mean(1), values.std(1), fmt=style, color=color, ms=5, capsize=2, label=name)
    tests = results[name, a][..., 1]
    right.errorbar(rates, tests.mean(1), tests.std(1), fmt=style, color=color, ms=5, capsize=2)
left.set(xlabel="a: factors from $10^{-a}$ to $10^a$", ylabel="test accuracy", xticks=spreads, title="at its best rate")
right.set(xscale="log", xlabel="learning rate", title=f"a = {spreads[-1]}")
fig.legend(ncols=3, fontsize=8, loc="outside upper center")

# %%
# SGD and Adam lose accuracy where the spread is wide, though they may choose their rates anew; EC-Opt loses none. It is
# not better than SGD from the balanced twin, which is best here: what the factors spoil is the start.
#
# :class:`~sklearn_gradspace.ECOptClassifier` is the same in one line. After training, two nets that differed in the
# factors alone make the same predictions:

options = {"optimizer": "adam", "lr": 0.003, "max_epochs": 10, "random_state": 0}
balanced, scaled = start(0, seed=0), start(2, seed=0)
rows, test = train_test_split(np.arange(len(y)), test_size=0.5, random_state=0)
fits = [ECOptClassifier(module=net.double(), **options).fit(X[rows].double(), y[rows]) for net in (balanced, scaled)]
difference = np.abs(fits[0].predict_proba(X[test]) - fits[1].predict_proba(X[test])).max()
print(f"accuracy {fits[0].score(X[test], y[test]):.3f}, largest difference of probabilities {difference:.1e}")
print(fits[0].scale_graph_)
