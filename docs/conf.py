"""The site: `sphinx-build -W --keep-going -b html docs build/site`."""

from __future__ import annotations

import ferkd

project = "ferkd"
author = "The ferkd authors"
copyright = "the ferkd authors, Apache-2.0"
release = version = ferkd.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["results"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # docstrings quote names by single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "ferkd"
html_show_sphinx = False
