"""Sphinx configuration; what names the project comes from settings.ini."""

import sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # house.py

_settings = ConfigParser(delimiters=["="])
_settings.read(Path(__file__).parents[2] / "settings.ini", encoding="utf-8")
_settings = _settings["DEFAULT"]

project = _settings["title"]
author = _settings["author"]
copyright = _settings["copyright"]
release = version = _settings["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinxcontrib.bibtex",
    "numpydoc",
    "house",
]
default_role = "py:obj"

# Chapters: stored outputs, nothing is executed
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
nb_ipywidgets_js = {}
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

# Reference: numpydoc docstrings of the exported modules
autosummary_generate = False
autodoc_mock_imports = ["rucio"]  # the plug-ins for its server stand in the reference, and it is not installed here
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # only classes of the package, which house.py adds

# Formulas: MathJax in one file, copied by build.py
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"svg": {"fontCache": "global", "scale": 0.95}, "options": {"enableMenu": False}}
math_eqref_format = "({number})"

# Citations
bibtex_bibfiles = [str(Path(__file__).parent / "references.bib")]
bibtex_default_style = "house"
bibtex_reference_style = "house"

# Looks
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_copy_source = True
html_show_search_summary = False  # it would fetch pages, which a browser refuses without a server
html_context = {"default_mode": "light"}
html_theme_options = {
    "repository_url": _settings["git_url"],
    "use_repository_button": True,
    "use_download_button": True,
    "home_page_in_toc": False,
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "logo": {"text": project, "alt_text": f"{project}: home"},
}
