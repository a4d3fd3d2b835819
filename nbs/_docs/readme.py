"""
Make README.md from nbs/index.ipynb.

    python nbs/_docs/readme.py           write README.md and its images (nbs/images/readme_*.png)
    python nbs/_docs/readme.py --check   end with status 1 if they aren't what the notebook makes
"""

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\(|(?:src|href)=\")(?![a-z]+:|/|#)([^)\"\s]+)")


def directives(cell):
    """Return the words of the `#|` lines at the top of a code cell."""
    return re.findall(r"^#\|\s*(\S+?):?(?:\s+(\S+))?\s*$", cell.source, re.MULTILINE)


def is_shown(cell):
    return cell.cell_type != "raw" and ("hide", "") not in directives(cell)


def shown(cell):
    """Return the cell without directives, and without the half of it that a directive hides."""
    if cell.cell_type != "code":
        return cell
    options = directives(cell)
    source = "" if ("echo", "false") in options else re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    outputs = [] if ("output", "false") in options else cell.outputs
    return nbformat.from_dict({**cell, "source": source, "outputs": outputs})


def from_root(markdown, folder):
    """Make links that are relative to `folder` relative to the root of the repository."""
    return LINK.sub(lambda found: found[1] + posixpath.normpath(posixpath.join(folder, found[2])), markdown)


def make(index, root):
    """Return the files that belong to a notebook: path to content."""
    notebook = nbformat.read(index, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.cells = [shown(cell) for cell in notebook.cells if is_shown(cell)]
    exporter = MarkdownExporter()
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    name = {"unique_key": "readme", "output_files_dir": "images"}
    markdown, resources = exporter.from_notebook_node(notebook, resources=name)
    markdown = re.sub(
        r"```python\s*```\n*", "", from_root(markdown, index.parent.relative_to(root).as_posix())
    )
    markdown = re.sub(r"\n{4,}", "\n\n", re.sub(r"^[ \t]+$", "", markdown, flags=re.MULTILINE)).strip() + "\n"
    images = {index.parent / path: content for path, content in resources.get("outputs", {}).items()}
    return {root / "README.md": markdown.encode(), **images}


def main(root=ROOT, check=False):
    index = root / "nbs" / "index.ipynb"
    files = make(index, root)
    stale = [path for path, content in files.items() if not path.exists() or path.read_bytes() != content]
    left = [path for path in (index.parent / "images").glob("readme_*") if path not in files]
    if check:
        return [path.relative_to(root).as_posix() for path in stale + left]
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[path])
    for path in left:
        path.unlink()
    return []


if __name__ == "__main__":
    wrong = main(check="--check" in sys.argv)
    if wrong:
        sys.exit(f"Not what nbs/index.ipynb makes: {', '.join(wrong)}; run python nbs/_docs/readme.py.")
