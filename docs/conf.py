"""Configuration of the documentation."""

import sklearn_gradspace

project = "sklearn-gradspace"
copyright = "2026, The sklearn-gradspace developers"
version = release = sklearn_gradspace.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx-mathjax-offline",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
autosummary_generate = True
numpydoc_show_class_members = False
autodoc_typehints = "none"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = "sklearn-gradspace"
html_show_sourcelink = False
html_sidebars = {"index": [], "errors": [], "internals": [], "changes": []}
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "show_toc_level": 2,
    "pygments_light_style": "tango",
    "footer_start": ["copyright"],
    "footer_end": [],
}

# Prompts and outputs of doctests stay behind when code is copied.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

plot_formats = [("svg", 100)]
plot_html_show_formats = plot_html_show_source_link = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "only_warn_on_example_error": True,  # so that -W fails, and without it the other pages are built
    "within_subsection_order": "ExampleTitleSortKey",
    "download_all_examples": False,
    "capture_repr": ("_repr_html_",),
    "min_reported_time": 1000,
    "show_memory": False,
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_gradspace",),
    "remove_config_comments": True,
}
