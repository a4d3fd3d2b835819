"""What chapters and tests share (nbs/conftest.py and tests/conftest.py load it): `--slow`, and whether SLURM and the lake are here."""

import json
import os
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

SLOW_LIMIT = 3600  # seconds that a single test may take with --slow
LAKE = Path(os.environ.get("ITWIN_TEST_LAKE", "/var/tmp/itwin-lake")) / "lake.json"  # written by tests/system/lake-up


def pytest_addoption(parser):
    parser.addoption(
        "--slow",
        action="store_true",
        help="also run what is marked slow: tests, and notebook cells with `#| slow`",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")
    config.addinivalue_line("markers", "slurm: needs the SLURM that tests/system/slurm-up starts")
    config.addinivalue_line("markers", "lake: needs the data lake that tests/system/lake-up starts")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.getoption("--slow"):
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SLOW_LIMIT))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if item.get_closest_marker("slurm") and not slurm_answers():
            item.add_marker(pytest.mark.skip(reason="slurm: start it with tests/system/slurm-up"))
        if item.get_closest_marker("lake") and not lake_answers():
            item.add_marker(pytest.mark.skip(reason="lake: start it with tests/system/lake-up"))


@cache
def slurm_answers():
    """Say whether the test cluster is up."""
    if shutil.which("sinfo") is None:
        return False
    done = subprocess.run(["sinfo", "-h", "-o", "%R %t"], capture_output=True, text=True, timeout=30)
    return "batch idle" in done.stdout or "batch mix" in done.stdout or "batch alloc" in done.stdout


@cache
def lake_answers():
    """Say whether the test lake is up."""
    if not LAKE.exists():
        return False
    server = urlsplit(json.loads(LAKE.read_text())["rucio"])
    with socket.socket() as connection:
        return connection.connect_ex((server.hostname, server.port)) == 0
