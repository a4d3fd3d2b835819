"""Define `--slow` once: nbs/conftest.py and tests/conftest.py both load this file."""

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


def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.getoption("--slow"):
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SLOW_LIMIT))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
