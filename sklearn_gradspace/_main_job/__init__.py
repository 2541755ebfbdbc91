"""The main job, ``python -m sklearn_gradspace``: a base net, its controls and GradNet, compared on real data."""
