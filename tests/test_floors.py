"""Hold the floors of the house: a module imports only from its own room and from the floors below."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "itwin_nb"
FLOOR = {"core": 0, "lake": 1, "compute": 1, "learn": 1, "cli": 3, "workflows": 3, "tour": 3}
TWIN = 2  # every other room: a new twin is a new folder
ROOF = 3
FORBIDDEN = {
    "core": {"torch", "dask", "distributed"},
    "twin": {"dask_jobqueue", "rucio"},
}


def floor(room):
    return FLOOR.get(room, TWIN)


def room_of(parts, package):
    """Return the room of a module, given its name below itwin_nb in parts; None for itwin_nb itself."""
    first = parts[0] if parts else "__init__"
    if (package / first).is_dir():
        return first
    return "cli" if (package / f"{first}.py").exists() and first != "__init__" else None


def imported(path, package):
    """Yield (line, absolute name) for every import of a module, inside functions as well."""
    here = [package.name, *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*(here[: -node.level] if node.level else []), *([node.module] if node.module else [])]
            )
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def allowed(room, name, package):
    """Say whether a room may import a name."""
    parts = name.split(".")
    if parts[0] != package.name:
        return parts[0] not in FORBIDDEN.get("twin" if floor(room) == TWIN else room, ())
    other = room_of(parts[1:], package)
    return other in (None, room) or floor(other) < floor(room) or floor(room) == ROOF


def violations(package):
    """List every import that goes up or across, as `file:line: room imports name`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(list(path.relative_to(package).with_suffix("").parts), package)
        if path.name == "_modidx.py" or room is None:
            continue
        for line, name in imported(path, package):
            if not allowed(room, name, package):
                found.append(f"{path.relative_to(package.parent)}:{line}: {room} imports {name}")
    return found


def test_no_import_goes_up_or_across():
    assert not violations(PACKAGE)


@pytest.mark.parametrize(
    ("module", "statement", "is_violation"),
    [
        ("core/files.py", "import torch", True),
        ("core/files.py", "def f():\n    from torch import nn", True),
        ("core/files.py", "from dask.distributed import Client", True),
        ("core/files.py", "from ..learn.loop import Loop", True),
        ("core/files.py", "from .errors import X", False),
        ("learn/loop.py", "from ..core.files import sha256\nimport torch", False),
        ("learn/loop.py", "from ..compute import run", True),
        ("learn/loop.py", "import itwin_nb.lattice.hmc", True),
        ("learn/loop.py", "from .. import lattice", True),
        ("lattice/hmc.py", "from ..learn.loop import Loop\nfrom .fields import Phi4", False),
        ("lattice/hmc.py", "from itwin_nb.radio.source import Pulsar", True),
        ("lattice/hmc.py", "from .. import __version__", False),
        ("lattice/hmc.py", "from dask_jobqueue import SLURMCluster", True),
        ("lattice/hmc.py", "from ..cli import main", True),
        ("lattice/loops/deep.py", "from ...learn.loop import Loop\nfrom ..fields import x", False),
        ("lattice/loops/deep.py", "from ...radio import x", True),
        ("cli.py", "from .lattice.hmc import HMC\nfrom .compute.run import run", False),
    ],
)
def test_checker_tells_right_from_wrong(tmp_path, module, statement, is_violation):
    package = tmp_path / "itwin_nb"
    for name in [
        "__init__",
        "cli",
        *(f"{room}/__init__" for room in ("core", "learn", "compute", "lattice", "radio")),
    ]:
        (package / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").touch()
    (package / module).parent.mkdir(exist_ok=True)
    (package / module).write_text(statement)
    assert bool(violations(package)) == is_violation


IMPORT_CORE = """
import sys, time
start = time.process_time()  # of the processor, since tests run beside each other
import itwin_nb.core
from itwin_nb.core import errors, files, plots, provenance
seconds = time.process_time() - start
print(seconds, *{"torch", "dask", "distributed", "matplotlib"}.intersection(sys.modules))
"""


def test_core_is_light():
    command = [sys.executable, "-c", IMPORT_CORE]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(5)
    ]
    assert [heavy for _, *heavy in runs] == [[]] * 5
    assert min(float(seconds) for seconds, *_ in runs) < 0.3
