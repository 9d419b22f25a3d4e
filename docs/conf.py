from __future__ import annotations

from patch_algorithm import __version__

project = "patch-algorithm"
author = "The patch-algorithm authors"
project_copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# A NamedTuple documents its fields itself; as attributes they would be described twice.
napoleon_use_ivar = True

html_theme = "furo"
html_title = "patch-algorithm"
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "
