"""Check that the data catalogue says the truth about the data that can be reached from here."""

import importlib
from pathlib import Path

import pytest
import yaml

from itwin_nb.core.files import adler32, sha256

ROOT = Path(__file__).parents[1]
CATALOG = ROOT / "data-catalog"
ENTRIES = {
    name: entry
    for source in yaml.safe_load((CATALOG / "catalog.yaml").read_text())["sources"]
    for name, entry in yaml.safe_load((CATALOG / source).read_text())["entries"].items()
}


@pytest.mark.parametrize("name", ENTRIES)
def test_driver_exists(name):
    module, _, function = ENTRIES[name]["driver"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["kind"] == "package"])
def test_package_data_is_what_the_catalogue_says(name):
    path = ROOT / ENTRIES[name]["path"]
    assert sha256(path) == ENTRIES[name]["sha256"]
    assert importlib.import_module("itwin_nb.lattice").pretrained(name).config["shape"]


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["kind"] == "published"])
def test_published_file_is_what_the_catalogue_says(name):
    entry = ENTRIES[name]
    path = ROOT.parent / "shared" / "data" / "lattice" / Path(entry["path"]).name
    if not path.exists():
        pytest.skip(f"{path.name} isn't here: get it from {entry['repository']}")
    assert (path.stat().st_size, adler32(path), sha256(path)) == (entry["bytes"], entry["adler32"], entry["sha256"])


def test_every_shipped_flow_is_in_the_catalogue():
    shipped = importlib.import_module("itwin_nb.lattice").shipped()
    assert set(shipped) == {name for name, entry in ENTRIES.items() if entry["kind"] == "package"}
