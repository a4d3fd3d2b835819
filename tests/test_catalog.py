"""Check that the data catalogue says the truth, refuses what is wrong in it, and becomes one of Intake 2."""

import pickle
import re
import shutil
from pathlib import Path

import h5py
import intake
import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from itwin_nb.core.errors import InputError, UsageError
from itwin_nb.core.files import adler32, sha256
from itwin_nb.detector.showers import make_reference
from itwin_nb.lake.datacatalog import _driver, open_catalog
from itwin_nb.lake.lake import Lake
from itwin_nb.lattice import HMC, Flow, Phi4, plaquette, pretrained, shipped

ROOT = Path(__file__).parents[1]
COPIES = ROOT.parent / "shared" / "data"
CATALOG = open_catalog(copies=COPIES)
ENTRIES = {name: entry for shelf in CATALOG.values() for name, entry in shelf.items()}
PUBLISHED = [name for name, entry in ENTRIES.items() if entry.source.repository]
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwcm9kdWNlciJ9.c2lnbmF0dXJl"

MINE = """
description: Data of a test
entries:
  phi4:
    description: Fields with the standard deviation 1 / lam
    driver: xarray.open_dataset
    url: lake://lattice/lam{lam}/ensemble.nc
    options: {engine: h5netcdf, drop_variables: ["{without}"]}
    parameters:
      lam: {type: int, default: 4, choices: [4, 8], description: coefficient of phi^4}
      without: {type: str, default: "-", description: variable that isn't read}
    citation: nobody
  raw:
    description: The same file as HDF5
    driver: h5py.File
    url: lake://lattice/lam{lam}/ensemble.nc
    parameters:
      lam: {type: int, default: 4, choices: [4, 8], description: coefficient of phi^4}
"""


# The catalogue of the package


@pytest.mark.parametrize("name", ENTRIES)
def test_driver_exists(name):
    assert callable(_driver(ENTRIES[name].driver))


def test_there_is_a_shelf_for_every_twin():
    assert set(CATALOG) == {"lattice", "detector", "radio", "virgo"}
    assert {path.stem for path in (ROOT / "data-catalog").glob("*.yaml")} == {"catalog", *CATALOG}


def test_every_shipped_flow_is_in_the_catalogue():
    packaged = {name: entry for name, entry in CATALOG.lattice.items() if entry.source.url and not entry.source.in_lake}
    assert set(shipped()) == set(packaged)
    for name, entry in packaged.items():
        flow = entry()
        assert isinstance(flow, Flow)
        for mine, theirs in zip(flow.parameters(), pretrained(name).parameters(), strict=True):
            assert torch.equal(mine, theirs)


def copy(source):
    """Return the copy of a published file that is on this machine."""
    name = Path(source.path).name
    if not (found := list(COPIES.glob(f"*/{name}"))):
        pytest.skip(f"{name} isn't here: get it from {source.repository}")
    return found[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_is_what_the_catalogue_says(name):
    source = ENTRIES[name].source
    path = copy(source)
    assert (path.stat().st_size, adler32(path), sha256(path)) == (source.bytes, source.adler32, source.sha256)
    said = re.search(r"plaquette ([\d.]+)", ENTRIES[name].description)
    field = ENTRIES[name]()
    if said:
        assert f"{float(plaquette(field)):.{len(said[1]) - 2}f}" == said[1]


@pytest.mark.parametrize("way", ["folder", "shelves", "clone", "environment"])
def test_published_file_is_found_in_folders_or_a_clone(tmp_path, monkeypatch, way):
    source = ENTRIES["su2-4x4x4x4"].source
    path = copy(source)
    place = tmp_path / {"clone": source.path, "shelves": f"lattice/{path.name}"}.get(way, path.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)
    if way == "environment":
        monkeypatch.setenv("ITWIN_DATA", str(tmp_path))
    entry = open_catalog(copies=None if way == "environment" else tmp_path).lattice["su2-4x4x4x4"]
    assert entry.get() == place
    with open(place, "r+b") as file:
        file.seek(5000)
        file.write(bytes([file.read(1)[0] ^ 1]))
    with pytest.raises(InputError, match="isn't what the catalogue says .sha256"):
        entry()


def test_damaged_package_is_refused(tmp_path, monkeypatch):
    weights = tmp_path / "lattice" / "weights"
    shutil.copytree(ROOT / "itwin_nb" / "lattice" / "weights", weights)
    monkeypatch.setattr("itwin_nb.lake.datacatalog.resources.files", lambda package: tmp_path)
    assert ENTRIES["phi4-intertwin-8"].get() == weights / "phi4-intertwin-8"
    config = weights / "phi4-intertwin-8" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(InputError, match="isn't what the catalogue says .sha256"):
        ENTRIES["phi4-intertwin-8"]()


def test_ensemble_of_the_workflow_is_read_from_the_lake(lake, tmp_path):
    ensemble = HMC(Phi4(-4.0, 8.0), (4, 4), chains=2).run(3, seed=1, thermalise=2)
    ensemble.to_netcdf(tmp_path / "ensemble.nc", engine="h5netcdf")
    lake.put(tmp_path / "ensemble.nc", "lattice:phi4-test/ensemble.nc")
    xr.testing.assert_identical(open_catalog().lattice["phi4-hmc"](ensemble="phi4-test"), ensemble)
    with pytest.raises(InputError, match="lattice:phi4-tess.*did you mean lattice:phi4-test/ensemble.nc"):
        open_catalog().lattice["phi4-hmc"](ensemble="phi4-tess")


def test_reference_showers_are_made_once(tmp_path, monkeypatch):
    def make(path):
        calls.append(path)
        return make_reference(path, 3)

    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("itwin_nb.detector.showers.make_reference", make)
    entry = open_catalog().detector["clic51-showers"]
    xr.testing.assert_identical(entry(), entry())
    assert calls == [tmp_path / "itwin" / "data" / "detector" / "clic51-showers.root"] == [entry.get()]


# A catalogue of one's own, and a lake


@pytest.fixture
def lake(tmp_path, monkeypatch):
    monkeypatch.setenv("ITWIN_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Lake()


@pytest.fixture
def fields(lake, tmp_path):
    random = np.random.default_rng(0)
    made = {lam: random.normal(size=(5, 4, 4)) / lam for lam in (4, 8)}
    for lam, field in made.items():
        xr.Dataset({"phi": (("config", "x", "y"), field)}).to_netcdf(tmp_path / "one.nc", engine="h5netcdf")
        lake.put(tmp_path / "one.nc", f"lattice:lam{lam}/ensemble.nc")
    return made


@pytest.fixture
def write(tmp_path):
    def write(text=MINE):
        (tmp_path / "catalog.yaml").write_text("description: Mine\nversion: 1\nsources: [mine.yaml]\n")
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path

    return write


def test_parameter_changes_the_data(fields, write):
    mine = open_catalog(write()).mine
    for lam, field in fields.items():
        assert np.array_equal(mine["phi4"](lam=lam).phi, field)
        with mine["raw"](lam=lam) as file:
            assert isinstance(file, h5py.File) and np.array_equal(file["phi"], field)
    assert np.array_equal(mine["phi4"]().phi, fields[4])
    assert not mine["phi4"](without="phi").data_vars


@pytest.mark.parametrize("damage", ["stored", "cached"])
def test_damaged_file_of_the_lake_is_refused(fields, write, lake, monkeypatch, damage):
    if damage == "cached":
        monkeypatch.setattr(Lake, "_in_place", lambda self, entry: None)
    path = open_catalog(write()).mine["phi4"].get()
    assert ("cache" in path.parts) == (damage == "cached")
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="lattice:lam4/ensemble.nc isn't what the catalogue says"):
        open_catalog(write()).mine["phi4"]()


def test_other_lake_is_asked(fields, write, tmp_path):
    assert open_catalog(write(), lake=Lake()).mine["phi4"]().sizes["config"] == 5
    with pytest.raises(InputError, match="no lattice:lam4/ensemble.nc"):
        open_catalog(write(), lake=Lake(tmp_path / "other")).mine["phi4"]()


def test_entries_travel_to_workers(fields, write):
    catalog = pickle.loads(pickle.dumps(open_catalog(write())))
    assert np.array_equal(catalog.mine["phi4"](lam=8).phi, fields[8])


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda catalog: catalog.mime, "The catalogue has no twin 'mime': choose mine."),
        (lambda catalog: catalog.mine["phi"], "The catalogue mine has no entry 'phi': choose phi4."),
        (lambda catalog: catalog.mine["phi4"](lamb=4), "phi4 has no parameter 'lamb': choose lam."),
        (lambda catalog: catalog.mine["phi4"](lam=5), "5 isn't one of its values: choose 4 or 8."),
        (lambda catalog: catalog.mine["phi4"](lam=True), "True isn't of the type int."),
        (lambda catalog: catalog.mine["phi4"](without="{x}"), "may only have letters"),
    ],
)
def test_wrong_request_is_one_sentence_with_near_names(write, ask, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        ask(open_catalog(write()))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("description: Data of a test", "", "must have description (str), entries (dict)"),
        ("entries:", "entries: 3\nothers:", "must have description (str), entries (dict)"),
        ("driver: xarray", "driven: xarray", "it can't have 'driven': choose driver"),
        ("    description: Fields", "    citation: Fields", "it has no description"),
        ("xarray.open_dataset", "3", "its driver 3 isn't a text"),
        ("type: int", "type: integer", "the type 'integer' isn't one: choose int"),
        ("default: 4", "default: 6", "6 isn't one of its values: choose 4 or 8"),
        ("choices: [4, 8]", "min: low", "its min and max are numbers"),
        ("choices: [4, 8]", "choices: 4", "the choices of a parameter are a list"),
        ("choices: [4, 8]", "min: 5", "4 is out of range: give 5 to inf"),
        ("parameters:\n      lam", "parameters: 3\n      #", "isn't a YAML file"),
        ("lam{lam}", "lam{lam", "a brace isn't closed"),
        ("lam{lam}", "lam{lam:d}/{beta}", "beta must be both a parameter and used"),
        ("lam{lam}", "lam{lam:{beta}}", "beta must be both a parameter and used"),
        ("lam{lam}", "lam{lam:zz}", "Unknown format code"),
        ("lam{lam}", "../{lam}", "isn't a name in the lake"),
        ("lake://", "https://", "isn't lake://scope/name or a path in the package"),
        ("lam{lam}", "lam4", "lam must be both a parameter and used"),
        ("{lam}", "{data}", "data, lam must be both"),
        ("citation: nobody", "sha256: 00", "quote the digits"),
        ("citation: nobody", f"sha256: '{64 * 'a'}'", "its checksum can't be that of several files"),
        ("citation: nobody", "path: a/b", "its place isn't clear"),
        ("citation: nobody", "maker: numpy.save", "made on first use has a cache://path"),
        ("lake://lattice/lam{lam}", "cache://lam{lam}", "made on first use has a cache://path"),
        ("engine: h5netcdf", f"token: {TOKEN}", "holds a token"),
        ("engine: h5netcdf", "header: Bearer abc", "holds a token"),
        ("engine: h5netcdf", "token: '{env(BEARER_TOKEN)}'", "holds a token or asks for one"),
    ],
)
def test_wrong_entry_is_one_sentence_with_file_and_name(write, old, new, reason):
    assert old in MINE
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        open_catalog(write(MINE.replace(old, new, 1)))
    sentence = str(caught.value)
    assert "mine.yaml" in sentence and sentence.count("\n") == 0 and TOKEN not in sentence
    assert "The entry phi4 of" in sentence or not sentence.startswith("The entry")


def test_missing_and_newer_catalogue_are_refused(write, tmp_path):
    with pytest.raises(InputError, match="no file .*catalog.yaml"):
        open_catalog(tmp_path)
    folder = write()
    (folder / "mine.yaml").unlink()
    with pytest.raises(InputError, match="no file .*mine.yaml"):
        open_catalog(folder)
    (folder / "catalog.yaml").write_text("description: Mine\nversion: 2\nsources: [mine.yaml]\n")
    with pytest.raises(InputError, match="has version 2: this itwin_nb reads version 1"):
        open_catalog(folder)


def test_missing_driver_is_named(fields, write):
    folder = write(MINE.replace("h5py.File", "h5py.Fill"))
    with pytest.raises(InputError, match="There is no driver h5py.Fill"):
        open_catalog(folder).mine["raw"]()


def test_person_sees_what_there_is(write):
    entry = open_catalog(write()).mine["phi4"]
    for shown in (repr(entry), entry._repr_markdown_()):
        for part in (entry.description, "lam", "coefficient of phi^4", "4, 8", "nobody", "lake://lattice"):
            assert part in shown
    assert "phi4(lam=4, without='-')" in repr(open_catalog(write()))


# Intake


@pytest.fixture
def shared(fields, write):
    return intake.open_catalog(str(open_catalog(write()).mine.to_intake(write() / "intake.yaml")))


def test_intake_lists_and_reads_the_entries(shared, fields):
    assert set(shared) == {"phi4", "raw"}
    assert np.array_equal(shared["phi4"].read().phi, fields[4])
    assert shared["phi4"].metadata["citation"] == "nobody"


def test_parameter_changes_the_data_in_intake(shared, fields):
    for lam, field in fields.items():
        assert np.array_equal(shared(lam=lam)["phi4"].read().phi, field)
        with shared(lam=lam)["raw"].read() as file:
            assert np.array_equal(file["phi"], field)
    assert not shared(lam=8, without="phi").phi4.read().data_vars
    with pytest.raises(ValueError):
        shared(lam=5)["phi4"]


def test_intake_survives_writing_and_reading(shared, fields, tmp_path):
    shared.to_yaml_file(str(tmp_path / "again.yaml"))
    again = intake.open_catalog(str(tmp_path / "again.yaml"))
    assert np.array_equal(again(lam=8)["phi4"].read().phi, fields[8])


def test_parameter_with_two_meanings_is_refused(write):
    first, _, last = MINE.rpartition("default: 4")
    with pytest.raises(UsageError, match="The parameter lam of raw differs from another's"):
        open_catalog(write(f"{first}default: 8{last}")).mine.to_intake(write() / "intake.yaml")


def test_nothing_shows_a_token(fields, write, monkeypatch, capsys):
    monkeypatch.setenv("BEARER_TOKEN", TOKEN)
    catalog = open_catalog(write(), lake=Lake(token=TOKEN))
    path = catalog.mine.to_intake(write() / "intake.yaml")
    theirs = intake.open_catalog(str(path))
    reader = theirs(lam=8)["phi4"]
    reader.read()
    for one in (theirs, reader, reader.to_entry(), theirs.user_parameters):
        print(one, repr(one))
    reader.pprint()
    print(reader.kwargs, reader.metadata, theirs.to_dict(), path.read_text())
    for ours in (catalog, catalog.mine, catalog.mine["phi4"]):
        print(ours, repr(ours), ours._repr_markdown_())
    shown = capsys.readouterr().out
    assert "lake://lattice" in shown and TOKEN not in shown and "env(" not in shown


def test_intake_catalogue_of_the_package_opens(lake, tmp_path):
    path = CATALOG.lattice.to_intake(tmp_path / "intake.yaml")
    assert list(intake.open_catalog(str(path))) == ["phi4-hmc"]
    assert yaml.safe_load(path.read_text())["user_parameters"].keys() == {"ensemble"}
