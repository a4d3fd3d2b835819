"""
Run notebooks where they lie and keep their outputs, as the docs show them.

    python nbs/_docs/fill.py nbs/lattice/02_hmc.ipynb ...

All cells run but those marked `#| eval: false`, or `#| rucio` (they run in Rucio's server only). Progress bars, widgets, which are dead out of their kernel, and what
processes write to stderr leave no output behind. Run `nbdev_clean` afterwards.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d+%\|")


class ChapterClient(NotebookClient):
    """Leave out the cells that can't run anywhere."""

    async def async_execute_cell(self, cell, *arguments, **options):
        if re.search(r"^#\|\s*(eval:\s*false|rucio)", cell.source, re.MULTILINE):
            return cell
        return await super().async_execute_cell(cell, *arguments, **options)


def passes(output):
    bar = WIDGET in output.get("data", {}) or BAR.search(output.get("text", ""))
    return bool(bar) or output.get("name") == "stderr"


def fill(path):
    """Run one notebook; it is written only if every cell succeeds."""
    notebook = nbformat.read(path, as_version=4)
    ChapterClient(notebook, timeout=None, coalesce_streams=True, resources={"metadata": {"path": path.parent}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not passes(output)]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        fill(Path(name))
