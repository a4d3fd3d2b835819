"""
Turn the notebooks into what Sphinx reads.

Directives of nbdev (``#| export``, ``#| hide`` ...) become tags or drop their cell, imports fold away, a cell of
parameters becomes a table, and every module gets a page of the reference.
"""

import ast
import json
import posixpath
import re
import shutil
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

ROOMS = ["core", "lake", "learn", "compute", "lattice", "detector", "radio", "virgo", "workflows", "tour", "benchmarks"]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
LINK = re.compile(r"\]\((?![a-z]+:|[/#])([^)#\s]+)(#[^)\s]*)?\)")
DIRECTIVE = re.compile(r"^#\s*\|\s*([\w-]+):?[ \t]*(.*)\n?", re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"
PYTHON = {"name": "python", "pygments_lexer": "ipython3", "file_extension": ".py", "mimetype": "text/x-python"}


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
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def rebase(text: str, folder: Path, root: Path, git_url: str) -> str:
    """Let a page's links to files lead to their pages, or to the repository where the site has none."""

    def target(link: re.Match) -> str:
        path, anchor = posixpath.normpath((folder.relative_to(root) / link[1]).as_posix()), link[2] or ""
        if not (root / path).exists():
            return link[0]
        page = PAGES.get(path, path.removeprefix("nbs/") if path.startswith("nbs/") else None)
        return f"](/{page}{anchor})" if page else f"]({git_url}/blob/main/{path}{anchor})"

    return LINK.sub(target, text)


# --- one notebook ----------------------------------------------------------------------------------------------------


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
    """Strip the directives from a code cell; nothing is left of a cell that is hidden or made of directives alone."""
    found = directives(cell)
    source = DIRECTIVE.sub("", text_of(cell)).strip("\n")
    if not source.strip() or "hide" in found or found.get("include") == "false":
        return None
    kept = cell["metadata"].get("tags", []) + tags(found, source)
    metadata = {"tags": kept, "mystnb": {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"} if only_imports(source) else {}}
    return {**cell, "source": source, "metadata": metadata, "outputs": [o for o in cell["outputs"] if static(o)]}


def together(cells: list[dict]) -> list[dict]:
    """Put cells of imports that follow each other into one."""
    merged = []
    for cell in cells:
        if merged and all(c["cell_type"] == "code" and only_imports(text_of(c)) for c in (merged[-1], cell)):
            merged[-1] = {**merged[-1], "source": f"{text_of(merged[-1])}\n\n# for the examples\n{text_of(cell)}"}
        else:
            merged.append(cell)
    return merged


def parameters(path: Path) -> dict:
    """Show what papermill can set in a notebook as a table."""
    from papermill import inspect_notebook

    rows = [
        f"| `{p['name']}` | {p['inferred_type_name']} | `{p['default']}` | {p['help']} |" for p in inspect_notebook(str(path)).values()
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
        note += "\n\n:::{note}\nThis page shows one moment of an interactive notebook. Move its sliders yourself with `itwin lab`.\n:::"
    return markdown(note)


def chapter(path: Path, nbs: Path, git_url: str) -> dict:
    """Turn a notebook into a page."""
    cells, module = [], None
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        module = module or ("default_exp" in directives(cell) and f"itwin_nb.{directives(cell)['default_exp']}") or None
        if cell["cell_type"] == "code" and "parameters" in cell["metadata"].get("tags", []):
            cells.append(parameters(path))
        elif cell["cell_type"] == "markdown":
            cells.append({**cell, "source": rebase(text_of(cell), path.parent, nbs.parent, git_url)})
        elif cell["cell_type"] == "code" and (cell := code(cell)):
            cells.append(cell)
    if path != nbs / "index.ipynb":
        cells.insert(1, heading(path, nbs, module, git_url))
    return notebook(together(cells))


# --- the reference ---------------------------------------------------------------------------------------------------


def underlined(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n"


def module_page(module: str, chapters: dict[str, str]) -> str:
    """Document one module: a summary, then every public name."""
    told = f"Told in the chapter :doc:`/{chapters[module]}`.\n\n" if module in chapters else ""
    return f"{underlined(module)}\n{told}.. automodule:: {module}\n   :members:\n   :show-inheritance:\n"


def front_door(package: str) -> list[str]:
    """Name what a package itself offers, by the place where it is defined."""
    module = import_module(package)
    things = [getattr(module, name) for name in getattr(module, "__all__", [])]
    return [f"{t.__module__}.{t.__qualname__}" for t in things if getattr(t, "__module__", "").startswith("itwin_nb.")]


def table(names: list[str]) -> str:
    """List names with their first lines."""
    return ".. autosummary::\n\n" + "".join(f"   ~{name}\n" for name in names) + "\n"


def tree_of(pages: list[str]) -> str:
    return ".. toctree::\n   :hidden:\n\n" + "".join(f"   {page}\n" for page in pages)


def package_page(package: str, modules: list[str]) -> str:
    names = front_door(package)
    door = f"What ``from {package} import ...`` offers:\n\n{table(names)}" if names else ""
    return f"{underlined(package)}\n{door}.. rubric:: Modules\n\n{table(modules)}{tree_of(modules)}"


def reference(root: Path, target: Path, chapters: dict[str, str]) -> None:
    """Write a page for each module and each package, and one that lists them."""
    target.mkdir()
    tree = {}
    for source in sorted((root / "itwin_nb").rglob("[a-z]*.py")):
        module = ".".join(source.relative_to(root).with_suffix("").parts)
        tree.setdefault(module.rpartition(".")[0], []).append(module)
        (target / f"{module}.rst").write_text(module_page(module, chapters))
    alone, packages = tree.pop("itwin_nb", []), sorted(tree, key=lambda package: place(package.split(".")[1]))
    for package in packages:
        (target / f"{package}.rst").write_text(package_page(package, tree[package]))
    rooms = "".join(f".. rubric:: :doc:`{package}`\n\n{table(tree[package])}" for package in packages)
    index = f"{underlined('API')}\nEvery public name, module by module.\n\n{table(alone) if alone else ''}{rooms}{tree_of([*alone, *packages])}"
    (target / "index.rst").write_text(index)


# --- the book --------------------------------------------------------------------------------------------------------


def place(room: str) -> int:
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def toctree(caption: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}" if caption else "", "", *pages, "```\n"])


def contents(pages: list[str]) -> str:
    """Order the chapters as the house is built: what stands on the root first, then room by room."""
    rooms = sorted({page.split("/")[0] for page in pages if "/" in page}, key=place)
    trees = [toctree("", [page for page in pages if "/" not in page and page != "index"])]
    trees += [toctree(room.capitalize(), [page for page in pages if page.startswith(f"{room}/")]) for room in rooms]
    return "\n".join([*trees, toctree("Reference", ["api/index", "literature", "contributing", "changes"])])


def stage(root: Path, target: Path) -> None:
    """Write the sources of the site to the new folder `target`."""
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    nbs, git_url = root / "nbs", settings["DEFAULT"]["git_url"]
    shutil.copytree(nbs, target, ignore=lambda _, names: [n for n in names if n.startswith(("_", ".")) or n == "runs"])
    pages, chapters = [], {}
    for path in sorted(target.rglob("*.ipynb")):
        name = path.relative_to(target)
        pages.append(name.with_suffix("").as_posix())
        page = chapter(nbs / name, nbs, git_url)
        path.write_text(json.dumps(page), encoding="utf-8")
        if module := re.search(r"\{py:mod\}`([\w.]+)`", text_of(page["cells"][1]) if len(page["cells"]) > 1 else ""):
            chapters[module[1]] = pages[-1]
    index = json.loads((target / "index.ipynb").read_text(encoding="utf-8"))
    index = notebook([*index["cells"], markdown(contents(pages))])
    (target / "index.ipynb").write_text(json.dumps(index), encoding="utf-8")
    reference(root, target / "api", chapters)
    (target / "literature.md").write_text("# Literature\n\n```{bibliography}\n:all:\n```\n")
    for name, page in PAGES.items():
        (target / page).write_text(rebase((root / name).read_text(encoding="utf-8"), root, root, git_url))
