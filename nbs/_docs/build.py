"""
Build the documentation from the notebooks: ``python nbs/_docs/build.py [--out DIR]``.

It shows their stored outputs: nothing is executed and nothing is fetched. The site is built in a temporary
folder and takes the place of an earlier one only when it is complete and without a warning. It reads from the
disk, without a server or a network.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from stage import stage

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def mathjax() -> Path:
    """Find MathJax, with its extensions and fonts in one file, in a package that the extra ``dev`` brings."""
    try:
        return next(f.locate() for f in files("sphinx-mathjax-offline") if f.name == "tex-svg-full.js")
    except PackageNotFoundError:
        sys.exit(f"MathJax isn't installed; run this in {ROOT}: pip install -c constraints.txt -e '.[dev]'")


def build(out: Path) -> int:
    """Stage the sources, run Sphinx with warnings as errors, and move the finished site to `out`."""
    if out.exists() and not (out / ".buildinfo").exists():
        sys.exit(f"{out} exists and isn't an earlier site: choose another folder with --out.")
    script = mathjax()
    with tempfile.TemporaryDirectory() as folder:
        source, site = Path(folder, "source"), Path(folder, "site")
        stage(ROOT, source)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
        folders = ["-c", HERE, "-d", Path(folder, "doctrees"), source, site]
        status = subprocess.run([*command, *folders], cwd=ROOT).returncode
        if status == 0:
            shutil.copy(script, site / "_static" / script.name)
            shutil.rmtree(out, ignore_errors=True)
            shutil.move(site, out)
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the documentation from the notebooks.")
    parser.add_argument("--out", type=Path, default=ROOT / "_site", help="folder of the site")
    start, out = time.monotonic(), parser.parse_args().out.resolve()
    status = build(out)
    verdict = "not built, see the warnings above" if status else "built"
    print(f"{out / 'index.html'}: {verdict} ({time.monotonic() - start:.0f} s)")
    sys.exit(status)
