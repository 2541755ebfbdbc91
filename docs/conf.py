"""Configuration of the documentation."""

import sklearn_gradspace

project = "sklearn-gradspace"
copyright = "2026, The sklearn-gradspace developers"
version = release = sklearn_gradspace.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "alabaster"
autosummary_generate = True
numpydoc_show_class_members = False
autodoc_typehints = "none"
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "only_warn_on_example_error": True,  # so that -W fails, and without it the other pages are built
}
