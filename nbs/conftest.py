"""Collect every chapter as one test: nbdev runs it in a fresh interpreter and honours its directives."""

import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.config import get_config

NOTEBOOKS = Path(__file__).parent
ROOT = NOTEBOOKS.parent
sys.path.insert(0, str(ROOT / "tests"))

RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
notebook, root, skip = sys.argv[1:]
done, seconds = test_nb(Path(notebook), skip_flags=skip.split(), basepath=root)
sys.exit(not done)
"""


def pytest_addoption(pluginmanager):
    pluginmanager.import_plugin("options")


def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".ipynb" and is_chapter(file_path.relative_to(NOTEBOOKS)):
        return Notebook.from_parent(parent, path=file_path)


def is_chapter(path):
    """Leave out drafts (`_`), checkpoints (`.`), and workflows, which papermill runs elsewhere."""
    return path.parts[0] != "workflows" and not any(part.startswith(("_", ".")) for part in path.parts)


class Notebook(pytest.File):
    def collect(self):
        yield Chapter.from_parent(self, name=self.path.stem)


class Chapter(pytest.Item):
    def runtest(self):
        skip = set(get_config(path=ROOT).tst_flags.split())
        if self.config.getoption("--slow"):
            skip.discard("slow")
        if self.config.pluginmanager.get_plugin("options").slurm_answers():
            skip.discard("slurm")
        if self.config.pluginmanager.get_plugin("options").lake_answers():
            skip.discard("lake")
        command = [sys.executable, "-c", RUN, str(self.path), str(ROOT), " ".join(skip)]
        run = subprocess.run(command, cwd=self.path.parent, capture_output=True, text=True)
        self.add_report_section("call", "stdout", run.stdout)
        if run.returncode:
            raise ChapterFailed(run.stderr)

    def repr_failure(self, excinfo):
        return (
            str(excinfo.value) if isinstance(excinfo.value, ChapterFailed) else super().repr_failure(excinfo)
        )

    def reportinfo(self):
        return self.path, None, f"chapter {self.path.relative_to(ROOT)}"


class ChapterFailed(Exception):
    """Hold the traceback of the cell that failed."""
