"""Configuration of the documentation."""

import sklearn_gradspace

project = "sklearn-gradspace"
copyright = "2026, The sklearn-gradspace developers"
version = release = sklearn_gradspace.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "alabaster"
autosummary_generate = True
numpydoc_show_class_members = False
autodoc_typehints = "none"
