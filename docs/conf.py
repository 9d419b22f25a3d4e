from __future__ import annotations

import sys
from importlib.metadata import metadata
from pathlib import Path

from patch_algorithm import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "patch-algorithm"
author = "The patch-algorithm authors"
project_copyright = author
release = version = __version__

extensions = [
    "generated",
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "wide_blocks",
]
exclude_patterns = ["_build", "_ext", "pictures/*.md"]

nitpicky = True
# Other projects' objects: their documentation is not at hand where this site is built.
nitpick_ignore_regex = [
    ("py:.*", r"(?!patch_algorithm\b).*"),
    # Rooms of the data half that no page describes.
    ("py:.*", r"patch_algorithm\.data\.(tokens|readers|conversion\.report)\..*"),
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# A NamedTuple documents its fields itself; as attributes they would be described twice.
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"patch-algorithm {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_logo = html_favicon = "pictures/logo.svg"
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "

_urls = dict(url.split(", ", 1) for url in metadata("patch-algorithm").get_all("Project-URL") or [])
if repository := _urls.get("Repository"):
    html_theme_options |= {
        "source_repository": repository,
        "source_branch": "main",
        "source_directory": "docs/",
        "footer_icons": [{"name": "Repository", "url": repository, "html": "Repository", "class": ""}],
    }
