"""
Build the documentation from the notebooks with their stored outputs: ``python nbs/_docs/build.py [--out DIR]``.

Nothing is executed and nothing is fetched. The site is built in a temporary folder and takes the place of an
earlier one only when it is complete and without a warning; it reads from the disk, without a server or a network.
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
    """Find MathJax in one file with all its extensions and fonts, which a package of the extra ``dev`` brings."""
    try:
        return next(f.locate() for f in files("sphinx-mathjax-offline") if f.name == "tex-svg-full.js")
    except PackageNotFoundError:
        sys.exit("MathJax isn't installed; run this in the folder of itwin_nb: pip install -c constraints.txt -e '.[dev]'")


def build(out: Path) -> int:
    """Stage the sources, run Sphinx with warnings as errors, and move the finished site to `out`."""
    script = mathjax()
    with tempfile.TemporaryDirectory() as folder:
        source, site = Path(folder, "source"), Path(folder, "site")
        stage(ROOT, source)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
        status = subprocess.run([*command, "-c", HERE, "-d", Path(folder, "doctrees"), source, site], cwd=ROOT).returncode
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
    print(f"{out / 'index.html'}: {'built' if status == 0 else 'not built, see the warnings above'} ({time.monotonic() - start:.0f} s)")
    sys.exit(status)
