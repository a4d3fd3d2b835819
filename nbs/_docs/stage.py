"""
Turn the notebooks into what Sphinx reads.

Directives of nbdev (``#| export``, ``#| hide`` ...) become tags or drop their cell, imports fold away, a cell
of parameters becomes a table, and every module gets a page of the reference.
"""

import ast
import json
import posixpath
import re
import shutil
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import get_origin

from itwin_nb.compute.workflow import read_workflow

FLOORS = ["core", "lake", "learn", "compute"]
TWINS = ["lattice", "detector", "radio", "virgo"]
ROOMS = [*FLOORS, *TWINS, "workflows", "tour", "benchmarks"]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
LINK = re.compile(r"\]\((?![a-z]+:|[/#])([^)#\s]+)(#[^)\s]*)?\)")
DIRECTIVE = re.compile(r"^#\s*\|\s*([\w-]+):?[ \t]*(.*)\n?", re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"
PYTHON = {"name": "python", "pygments_lexer": "ipython3"}
FOLDED = {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"}
INTERACTIVE = "This notebook is interactive: open it with `itwin lab`, run all cells and move its controls."


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def notebook(cells: list[dict]) -> dict:
    cells = [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells)]
    return {"cells": cells, "metadata": {"language_info": PYTHON}, "nbformat": 4, "nbformat_minor": 5}


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def directives(cell: dict) -> dict[str, str]:
    return dict(DIRECTIVE.findall(text_of(cell))) if cell["cell_type"] == "code" else {}


def only_imports(source: str) -> bool:
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic command
        return False
    return bool(body) and all(is_import(node) for node in body)


def is_import(node: ast.stmt) -> bool:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return all(is_import(inner) for inner in node.body)
    return isinstance(node, (ast.Import, ast.ImportFrom))


def rebase(text: str, folder: Path, root: Path, git_url: str) -> str:
    """Let a page's links to files lead to their pages, or to the repository where the site has none."""

    def target(link: re.Match) -> str:
        path, anchor = posixpath.normpath((folder.relative_to(root) / link[1]).as_posix()), link[2] or ""
        if not (root / path).exists():
            return link[0]
        page = PAGES.get(path, path.removeprefix("nbs/") if path.startswith("nbs/") else None)
        return f"](/{page}{anchor})" if page else f"]({git_url}/blob/main/{path}{anchor})"

    return LINK.sub(target, text)


# --- one notebook ----------------------------------------------------------------------------------------


def static(output: dict) -> bool:
    """Tell an output that a page can show from a widget, which lives in a running notebook only."""
    return WIDGET not in output.get("data", {})


def tags(found: dict[str, str], source: str) -> list[str]:
    """Give a cell the tags that myst-nb and the style sheet understand."""
    rules = {
        "export": {"export", "exports", "exporti"} & found.keys(),
        "remove-input": found.get("echo") == "false",
        "remove-output": found.get("output") == "false",
        "hide-input": found.get("code-fold") == "true" or only_imports(source),
    }
    return [tag for tag, wanted in rules.items() if wanted]


def code(cell: dict) -> dict | None:
    """Strip the directives from a code cell; drop one that is hidden or speaks to nbdev alone."""
    found = directives(cell)
    source = DIRECTIVE.sub("", text_of(cell)).strip("\n")
    empty = not source.strip() or source.startswith("_all_ =")
    if empty or "hide" in found or found.get("include") == "false":
        return None
    kept = cell["metadata"].get("tags", []) + tags(found, source)
    metadata = {"tags": kept, "mystnb": FOLDED if only_imports(source) else {}}
    outputs = [output for output in cell["outputs"] if static(output)]
    return {**cell, "source": source, "metadata": metadata, "outputs": outputs}


def together(cells: list[dict]) -> list[dict]:
    """Put cells of imports that follow each other into one."""
    merged = []
    for cell in cells:
        if merged and all(c["cell_type"] == "code" and only_imports(text_of(c)) for c in (merged[-1], cell)):
            source = f"{text_of(merged[-1])}\n\n# for the examples\n{text_of(cell)}"
            merged[-1] = {**merged[-1], "source": source}
        else:
            merged.append(cell)
    return merged


def parameters(path: Path) -> dict:
    """Show what a user can set in a workflow as a table."""
    rows = [
        f"| `{p.name}` | {p.type if get_origin(p.type) else p.type.__name__} | `{p.default!r}` | {p.help} |"
        for p in read_workflow(path).choices().values()
    ]
    return markdown("\n".join(["| parameter | type | default | meaning |", "|---|---|---|---|", *rows]))


def heading(path: Path, nbs: Path, module: str | None, git_url: str) -> dict:
    """Say below the title where the chapter lives, and how it is run."""
    name = path.relative_to(nbs.parent).as_posix()
    lines = [f"{{py:mod}}`{module}`"] if module else []
    lines += [f"[{name}]({git_url}/blob/main/{name})"]
    note = "{.chapter}\n" + " · ".join(lines)
    if path.parent.name == "workflows":
        note += f"\n\n```bash\nitwin run {path.stem}\n```"
    if path.parent.name == "tour":
        note += f"\n\n:::{{note}}\n{INTERACTIVE}\n:::"
    return markdown(note)


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def module_of(path: Path) -> str | None:
    """Name the module that a notebook exports."""
    exports = filter(None, (directives(cell).get("default_exp") for cell in cells_of(path)))
    return next((f"itwin_nb.{name}".removesuffix(".__init__") for name in exports), None)


def chapter(path: Path, nbs: Path, git_url: str) -> dict:
    """Turn a notebook into a page."""
    cells = []
    for cell in cells_of(path):
        if path.parent.name == "workflows" and "parameters" in cell["metadata"].get("tags", []):
            cells.append(parameters(path))
        elif cell["cell_type"] == "markdown":
            cells.append({**cell, "source": rebase(text_of(cell), path.parent, nbs.parent, git_url)})
        elif cell["cell_type"] == "code" and (cell := code(cell)):
            cells.append(cell)
    if path != nbs / "index.ipynb":
        cells.insert(1, heading(path, nbs, module_of(path), git_url))
    return notebook(together(cells))


# --- the reference ---------------------------------------------------------------------------------------


def underlined(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n"


def told(module: str, chapters: dict[str, str]) -> str:
    return f"Told in the chapter :doc:`/{chapters[module]}`.\n\n" if module in chapters else ""


def module_page(module: str, chapters: dict[str, str]) -> str:
    """Document one module: a summary, then every public name."""
    options = "   :members:\n   :show-inheritance:\n"
    return f"{underlined(module)}\n{told(module, chapters)}.. automodule:: {module}\n{options}"


def front_door(package: str) -> list[str]:
    """Name what a package itself offers, by the place where it is defined."""
    module = import_module(package)
    things = [getattr(module, name) for name in getattr(module, "__all__", [])]
    ours = [thing for thing in things if getattr(thing, "__module__", "").startswith("itwin_nb.")]
    return [f"{thing.__module__}.{thing.__qualname__}" for thing in ours]


def table(names: list[str]) -> str:
    """List names with their first lines."""
    return ".. autosummary::\n\n" + "".join(f"   ~{name}\n" for name in names) + "\n"


def tree_of(pages: list[str]) -> str:
    return ".. toctree::\n   :hidden:\n\n" + "".join(f"   {page}\n" for page in pages)


def package_page(package: str, modules: list[str], chapters: dict[str, str]) -> str:
    """Document a room: what a user imports from it, and its modules."""
    names = front_door(package)
    door = f"What ``from {package} import ...`` offers:\n\n{table(names)}" if names else ""
    head = f"{underlined(package)}\n.. module:: {package}\n.. currentmodule:: None\n\n"
    return f"{head}{told(package, chapters)}{door}.. rubric:: Modules\n\n{table(modules)}{tree_of(modules)}"


def reference(root: Path, target: Path, chapters: dict[str, str]) -> None:
    """Write a page for each module and each package, and one that lists them."""
    target.mkdir()
    tree = {}
    for source in sorted((root / "itwin_nb").rglob("[a-z]*.py")):
        module = ".".join(source.relative_to(root).with_suffix("").parts)
        tree.setdefault(module.rpartition(".")[0], []).append(module)
        (target / f"{module}.rst").write_text(module_page(module, chapters))
    alone = tree.pop("itwin_nb")
    packages = sorted(tree, key=lambda package: place(package.split(".")[1]))
    for package in packages:
        (target / f"{package}.rst").write_text(package_page(package, tree[package], chapters))
    head = f"{underlined('API')}\nEvery public name, module by module.\n\n{table(alone)}"
    rooms = "".join(f".. rubric:: :doc:`{package}`\n\n{table(tree[package])}" for package in packages)
    (target / "index.rst").write_text(f"{head}{rooms}{tree_of([*alone, *packages])}")


# --- the book --------------------------------------------------------------------------------------------


def place(room: str) -> int:
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def toctree(caption: str, pages: list[str]) -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["```{toctree}", *options, "", *pages, "```\n"])


def contents(pages: list[str]) -> str:
    """Order the chapters as the house is built: what stands on the root first, then room by room."""
    rooms = sorted({page.split("/")[0] for page in pages if "/" in page}, key=place)
    trees = [toctree("", [page for page in pages if "/" not in page and page != "index"])]
    for room in rooms:
        trees.append(toctree(room.capitalize(), [page for page in pages if page.startswith(f"{room}/")]))
    return "\n".join([*trees, toctree("Reference", ["api/index", "literature", "contributing", "changes"])])


def is_source(name: str) -> bool:
    return not name.startswith(("_", ".")) and name != "runs"


def stage(root: Path, target: Path) -> None:
    """Write the sources of the site to the new folder `target`."""
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    nbs, git_url = root / "nbs", settings["DEFAULT"]["git_url"]
    shutil.copytree(nbs, target, ignore=lambda _, names: [name for name in names if not is_source(name)])
    paths = sorted(target.rglob("*.ipynb"))
    pages = {path.relative_to(target).with_suffix("").as_posix(): path for path in paths}
    chapters = {module: page for page in pages if (module := module_of(nbs / f"{page}.ipynb"))}
    for page, path in pages.items():
        staged = chapter(nbs / f"{page}.ipynb", nbs, git_url)
        if page == "index":
            staged = notebook([*staged["cells"], markdown(contents(list(pages)))])
        path.write_text(json.dumps(staged), encoding="utf-8")
    reference(root, target / "api", chapters)
    (target / "literature.md").write_text("# Literature\n\n```{bibliography}\n:all:\n```\n")
    for name, page in PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        (target / page).write_text(rebase(text, root, root, git_url), encoding="utf-8")
