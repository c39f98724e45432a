"""Sphinx: the pages of this folder, the API from docstrings, and a gallery that the build draws. `make docs`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sphinx.application import Sphinx

import deformvit

project = "deformvit"
author = "the deformvit authors"
copyright = "the deformvit authors, Apache-2.0"
release = version = deformvit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "gallery"]
exclude_patterns = ["_build"]
highlight_language = "text"  # of blocks that name none: commands and formulas
html_theme = "furo"
html_title = "deformvit"
html_show_sphinx = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
default_role = "code"  # as docstrings and the help of the command mean `this`
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_use_rtype = False
nitpicky = True
# A reference to a public name of this package leads somewhere.
nitpick_ignore_regex = [(r"py:.*", r"(?!deformvit\.).*|.*\._\w+|deformvit\.(inference\.R|tasks\.loading\.Images)")]
suppress_warnings = ["myst.xref_missing", "autodoc.mocked_object"]


def keep_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep "one of two: this" whole below a field, where Napoleon takes what is before the colon for a type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # escapes the end of its own line


def fields_once(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str, None] | None:
    """Leave out the signatures of data classes, which repeat the fields that follow."""
    return ("", None) if what == "class" and dataclasses.is_dataclass(obj) else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", fields_once)
    app.connect("autodoc-process-docstring", keep_colons, priority=100)
