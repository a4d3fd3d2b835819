"""
Teach Sphinx the habits of the house.

Display formulas of a chapter are numbered from (1); a name of the package in backticks becomes a link to its
reference; methods that a module adds with ``@patch`` are documented in the order of the source, and with it;
docstrings write formulas as $x$; citations read (Wolff, 2004).
"""

import ast
import re
from dataclasses import dataclass, field
from inspect import isclass, isroutine
from pathlib import Path

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as Unsorted
from pybtex.style.sorting.author_year_title import SortingStyle
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
from sphinxcontrib.bibtex.plugin import register_plugin as register_reference_style
from sphinxcontrib.bibtex.style.referencing import BracketStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

NAME = re.compile(r"[A-Za-z_][\w.]*(?=(\(\))?$)")
ARXIV = re.compile(r"(?<![/`])\barXiv:((?:[a-z-]+/)?\d[\d.]+\d)")
DOI = re.compile(r"(?<![/`])\bdoi:(10\.\S+\w)", re.IGNORECASE)
DOLLARS = re.compile(r"(?<![\\$`])\$([^$`]+?)\$")
MEMBERS = {"method", "attribute", "property", "module"}


class NumberFormulas(SphinxTransform):
    """Number every display formula of a chapter in the order of the page."""

    default_priority = 300

    def apply(self, **kwargs) -> None:
        if not self.env.doc2path(self.env.docname).suffix == ".ipynb":
            return
        for number, formula in enumerate(self.document.findall(nodes.math_block), 1):
            if not formula.get("label"):
                formula["label"] = f"{self.env.docname}:{number}"
                formula["ids"].append(f"equation-{number}")
            formula["number"], formula["docname"] = number, self.env.docname
            self.env.domains["math"].equations[formula["label"]] = (self.env.docname, number)


class LinkNames(SphinxPostTransform):
    """Make a name of the package in backticks a link to its reference."""

    default_priority = 200

    def run(self, **kwargs) -> None:
        if not self.env.doc2path(self.env.docname).suffix == ".ipynb":
            return
        for literal in list(self.document.findall(nodes.literal)):
            inside = isinstance(literal.parent, (nodes.reference, nodes.title))
            if not inside and (target := self.find(literal.astext())):
                literal.replace_self(self.link(target, literal))

    def link(self, target, literal: nodes.literal) -> nodes.reference:
        names = self.env.docname, target.docname, target.node_id
        return make_refnode(self.app.builder, *names, literal.deepcopy())

    def find(self, text: str):
        """Find the one object that a reader of this chapter means by `text`."""
        if not (match := NAME.match(text)):
            return None
        objects = self.env.domains["py"].objects
        names = [name for name in objects if f".{name}".endswith(f".{match[0]}")]
        if "." not in match[0]:
            names = [name for name in names if objects[name].objtype not in MEMBERS]
        for home in (self.module, self.module.rpartition(".")[0], ""):
            if len(near := [name for name in names if name.startswith(home)]) == 1:
                return objects[near[0]]
        return None

    @property
    def module(self) -> str:
        return "itwin_nb." + re.sub(r"(?<![^/])\d+\w?_", "", self.env.docname).replace("/", ".")


def patched(function: ast.stmt) -> str | None:
    """Name the method that a decorated function becomes; its first argument names the class."""
    calls = [getattr(d, "func", d) for d in getattr(function, "decorator_list", [])]
    if not any(getattr(c, "id", "") == "patch" for c in calls):
        return None
    return f"{ast.unparse(function.args.args[0].annotation)}.{function.name}"


def modules(app: Sphinx) -> list[Path]:
    return sorted((app.confdir.parents[1] / "itwin_nb").rglob("[a-z]*.py"))


def module_of(app: Sphinx, source: Path) -> str:
    return ".".join(source.relative_to(app.confdir.parents[1]).with_suffix("").parts)


def find_patches(app: Sphinx) -> None:
    """Tell Sphinx which functions of the modules are methods, and where they stand."""
    for source in modules(app):
        with mock(app.config.autodoc_mock_imports):
            analyzer = ModuleAnalyzer.for_module(module_of(app, source))
        analyzer.analyze()
        for function in ast.parse(analyzer.code).body:
            if method := patched(function):
                analyzer.tags[method] = ("def", function.decorator_list[0].lineno, function.end_lineno)
                analyzer.tagorder[method] = max(analyzer.tagorder.values(), default=0) + 1


def summary(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Follow a module's docstring with a table of what it offers."""
    if what == "module":
        things = {name: getattr(obj, name) for name in getattr(obj, "__all__", [])}
        names = [name for name, thing in things.items() if isroutine(thing) or isclass(thing)]
        lines += ["", ".. autosummary::", "", *(f"   {n}" for n in names), ""] if names else []


def no_plain_bases(app: Sphinx, doctree: nodes.document) -> None:
    """Do not say of a class that it is an object."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if paragraph.astext() == "Bases: object":
            paragraph.parent.remove(paragraph)


def shorthand(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Let docstrings write $x$ for a formula, and arXiv:0000.00000 or doi:10.0000/0 for a paper."""
    text = DOLLARS.sub(r":math:`\1`", "\n".join(lines))
    text = ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", text)
    lines[:] = DOI.sub(r"`doi:\1 <https://doi.org/\1>`__", text).split("\n")


def link_types(app: Sphinx, config) -> None:
    """Let types in docstrings lead to the classes of the package, and to no other site."""
    config.numpydoc_xref_aliases_complete = {}
    for source in modules(app):
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                config.numpydoc_xref_aliases_complete[node.name] = f"{module_of(app, source)}.{node.name}"


class HouseStyle(Unsorted):
    """List the literature by author and year."""

    default_sorting_style = "author_year_title"


def round_brackets() -> BracketStyle:
    return BracketStyle(left="(", right=")", sep="; ")


@dataclass
class HouseReferences(AuthorYearReferenceStyle):
    """Cite as (Wolff, 2004)."""

    bracket_textual: BracketStyle = field(default_factory=round_brackets)
    bracket_parenthetical: BracketStyle = field(default_factory=round_brackets)


def setup(app: Sphinx) -> dict:
    register_plugin("pybtex.style.formatting", "house", HouseStyle)
    register_reference_style("sphinxcontrib.bibtex.style.referencing", "house", HouseReferences)
    app.set_html_assets_policy("always")  # titles in the sidebar of every page may hold formulas
    app.add_transform(NumberFormulas)
    app.add_post_transform(LinkNames)
    app.connect("config-inited", link_types, priority=900)
    app.connect("builder-inited", find_patches)
    app.connect("autodoc-process-docstring", shorthand, priority=100)
    app.connect("autodoc-process-docstring", summary, priority=900)
    app.connect("doctree-read", no_plain_bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
