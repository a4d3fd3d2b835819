"""What chapters and tests share (nbs/conftest.py and tests/conftest.py load it): `--slow`, and whether SLURM is here."""

import shutil
import subprocess
from functools import cache

import pytest

SLOW_LIMIT = 3600  # seconds that a single test may take with --slow


def pytest_addoption(parser):
    parser.addoption(
        "--slow",
        action="store_true",
        help="also run what is marked slow: tests, and notebook cells with `#| slow`",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")
    config.addinivalue_line("markers", "slurm: needs the SLURM that tests/system/slurm-up starts")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.getoption("--slow"):
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SLOW_LIMIT))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if item.get_closest_marker("slurm") and not slurm_answers():
            item.add_marker(pytest.mark.skip(reason="slurm: start it with tests/system/slurm-up"))


@cache
def slurm_answers():
    """Say whether the test cluster is up."""
    if shutil.which("sinfo") is None:
        return False
    done = subprocess.run(["sinfo", "-h", "-o", "%R %t"], capture_output=True, text=True, timeout=30)
    return "batch idle" in done.stdout or "batch mix" in done.stdout or "batch alloc" in done.stdout
