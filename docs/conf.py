"""The site: Sphinx over the pages of this folder, with the tutorials' cells executed by MyST-NB."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]
# For the processes that execute cells. One thread: the pages' figures are those of one core.
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[1], os.environ.get("PYTHONPATH", "")])
os.environ["OMP_NUM_THREADS"] = "1"

import ddim

project = "ddim"
author = copyright = "The ddim developers"
release = version = ddim.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathematics",
    "reference",
    "chinese",
]
root_doc = "index"
exclude_patterns = ["_ext", "_static"]
nitpicky = True
# Types of other packages, and parts of this one that no page describes.
nitpick_ignore_regex = [("py:.*", ".*")]

# Pages.
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# Cells. They are executed once and kept by what they say, whichever page shows them: the Chinese
# pages, which have the cells of the English ones, find them there.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "cells")
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

# Reference.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_use_ivar = True
napoleon_use_rtype = False

# HTML. Nothing in it comes from elsewhere.
html_theme = "furo"
html_title = f"ddim {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
