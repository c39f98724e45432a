"""Sphinx: the pages of this folder, the API from docstrings, and a gallery that the build draws. `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import deformvit

project = "deformvit"
author = "the deformvit authors"
copyright = "the deformvit authors, Apache-2.0"
release = version = deformvit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "gallery"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "deformvit"
html_show_sphinx = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_use_rtype = False
nitpicky = False
suppress_warnings = ["myst.xref_missing", "autodoc.mocked_object"]
