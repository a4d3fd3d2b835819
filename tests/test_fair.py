"""Check the FAIR documents with other people's files, schemas and readers."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rocrate.rocrate import ROCrate

from itwin_nb.core.errors import InputError, UsageError
from itwin_nb.core.files import sha256, write_json
from itwin_nb.core.provenance import Run
from itwin_nb.lake.fair import (
    Algorithm,
    Collection,
    Ensemble,
    Implementation,
    Participant,
    datacite,
    lime_payload,
    posix_cksum,
    prov,
    qcdml_config,
    qcdml_ensemble,
    ro_crate,
)
from itwin_nb.lattice import read_config, write_config

SHARED = Path(__file__).parents[2] / "shared" / "data"
# name, sites (t, z, y, x), colours, logical name to give
FILES = [
    ("ildg.l8t4b3360", (4, 8, 8, 8), 3, ""),
    ("weak_field.lime", (8, 4, 4, 4), 3, "lfn://ldg/itwin/weak"),
    ("conf_00000100_4444nc2.ildg", (4, 4, 4, 4), 2, "lfn://ldg/itwin/su2"),
]
SIX_LINKS = {"beta": 3.36, "normalisation": "c0_is_one", "c0": 1.0, "c1": -0.05, "c2": 0.0, "c3": 0.0}

ANNA = Participant("Josiah Carberry", "Brown University", "0000-0002-1825-0097")
ABOUT = Collection(
    "Gauge fields <& others>",
    "Größe 4³×8, for tests",
    (ANNA, Participant("Ben Ford", "CSIC"), Participant("S. Hawking", "Cambridge", "0000-0002-9079-593X")),
    "https://creativecommons.org/licenses/by/4.0/",
    "interTwin",
    "2026-11-22",
    ("lattice", "SU(3)"),
    ("https://doi.org/10.1103/PhysRevD.10.2445", "https://arxiv.org/abs/2212.08392", "https://example.org/x"),
)
HMC = Algorithm("HMC", "https://doi.org/10.1016/0370-2693(87)91197-X", parameters={"trajectoryLength": 1.0})
ENSEMBLE = Ensemble("mc://ldg/itwin/b", ABOUT, "interTwin", "Tests", (4, 4, 4, 4), {"beta": 6.0}, HMC)
TOOLS = Implementation("laptop", "CSIC", "x86_64", "itwin_nb", "0.1.0", "2026-11-01")


def validate(document, schema):
    """Check XML against a schema of the lattice data grid."""
    etree = pytest.importorskip("lxml.etree")
    path = SHARED / "qcdml" / schema
    if not path.exists():
        pytest.skip(f"{schema} isn't here: get it from https://github.com/LatticeQCD/createQCDml")
    etree.XMLSchema(etree.parse(path)).assertValid(etree.fromstring(document.encode()))
    return etree.fromstring(document.encode())


def value(tree, tag):
    """Give the text of the one element of that name."""
    (found,) = tree.iterfind(f".//{{*}}{tag}")
    return found.text


@pytest.fixture(params=FILES, ids=lambda row: row[0])
def published(request):
    """Give a file that others published, and its ensemble."""
    name, shape, colours, lfn = request.param
    path = SHARED / "lattice" / name
    if not path.exists():
        pytest.skip(f"{name} isn't here: see data-catalog/lattice.yaml")
    return path, replace(ENSEMBLE, shape=shape, colours=colours), lfn


def coreutils(path):
    done = subprocess.run(["cksum", path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 65535, 65536, 65537, (1 << 24) + 3])
def test_checksum_is_that_of_cksum(size, tmp_path):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    blocks = [content[at : at + 100_003] for at in range(0, size, 100_003)]
    assert posix_cksum(blocks) == coreutils(tmp_path / "file")
    assert posix_cksum(map(memoryview, blocks)) == coreutils(tmp_path / "file")


def test_payload_is_what_the_lattice_wing_reads(published, tmp_path):
    path, ensemble, _ = published
    (tmp_path / "payload").write_bytes(b"".join(lime_payload(path)))
    links = read_config(path, shape=ensemble.shape).values
    assert (tmp_path / "payload").read_bytes() == links.astype(">c16").tobytes()
    assert posix_cksum(lime_payload(path)) == coreutils(tmp_path / "payload")


def test_configuration_is_valid_and_true(published, tmp_path):
    path, ensemble, lfn = published
    plaquette = read_config(path, shape=ensemble.shape).attrs["plaquette"]
    document = qcdml_config(ensemble, path, TOOLS, update=100, plaquette=plaquette, date="2026-11-22", lfn=lfn)
    tree = validate(document, "QCDmlConfig2.0.0.xsd")
    (tmp_path / "payload").write_bytes(b"".join(lime_payload(path)))
    assert int(value(tree, "crcCheckSum")) == coreutils(tmp_path / "payload")
    assert float(value(tree, "avePlaquette")) == plaquette
    assert value(tree, "field") == f"su{ensemble.colours}gauge"
    assert value(tree, "dataLFN") == (lfn or "mc://ldg///_s008t04_b0336000/ildg_s008t04_b0336000")


def test_file_of_another_ensemble_is_refused(published):
    path, ensemble, lfn = published
    given = {"update": 0, "plaquette": 0.5, "date": "2026-11-22", "lfn": lfn}
    with pytest.raises(InputError, match="is it one of it"):
        qcdml_config(replace(ensemble, shape=(8, 8, 8, 4)), path, TOOLS, **given)
    with pytest.raises(InputError, match="is it one of it"):
        qcdml_config(replace(ensemble, colours=4), path, TOOLS, **given)


def test_files_of_the_lattice_wing_are_described(tmp_path):
    links = np.broadcast_to(np.eye(3, dtype=complex), (4, 4, 4, 6, 4, 3, 3))
    path = write_config(links, tmp_path / "0000.lime", lfn="lfn://ldg/itwin/b/0000", precision=32)
    ensemble = replace(ENSEMBLE, shape=(4, 4, 4, 6))
    document = qcdml_config(ensemble, path, TOOLS, update=0, plaquette=1, date="2026-11-22")
    tree = validate(document, "QCDmlConfig2.0.0.xsd")
    assert value(tree, "dataLFN") == "lfn://ldg/itwin/b/0000"
    whole = path.read_bytes()
    for lost, words in ((40, "truncated"), (400, "no record starts"), (5000, "truncated")):
        path.write_bytes(whole[:-lost])
        with pytest.raises(InputError, match=words):
            qcdml_config(ensemble, path, TOOLS, update=0, plaquette=1, date="2026-11-22")


@pytest.mark.parametrize("action", ["treelevelSymanzik", "LuescherWeisz", "iwasakiRG", "DBW2"])
def test_ensembles_of_six_link_actions_are_valid(action):
    ensemble = replace(ENSEMBLE, action=f"{action}GluonAction", couplings=dict(reversed(SIX_LINKS.items())))
    tree = validate(qcdml_ensemble(ensemble), "QCDmlEnsemble2.0.0.xsd")
    assert float(value(tree, "beta")) == 3.36 and float(value(tree, "c1")) == -0.05


@pytest.mark.parametrize("colours", [2, 3, 12])
def test_ensemble_is_valid_and_true(colours):
    ensemble = replace(ENSEMBLE, colours=colours, shape=(8, 4, 5, 6), algorithm=replace(HMC, parameters={}))
    tree = validate(qcdml_ensemble(ensemble), "QCDmlEnsemble2.0.0.xsd")
    (size,) = tree.iterfind(".//{*}size")
    assert [(axis.tag[-1], axis.text) for axis in size] == [("x", "6"), ("y", "5"), ("z", "4"), ("t", "8")]
    assert value(tree, "gaugeGroup") == f"SU({colours})" and value(tree, "licenseURI") == ABOUT.licence


def test_author_whose_orcid_ends_with_x_is_named():
    about = replace(ABOUT, creators=ABOUT.creators[::-1])
    tree = validate(qcdml_ensemble(replace(ENSEMBLE, about=about)), "QCDmlEnsemble2.0.0.xsd")
    assert tree.find(".//{*}participant/{*}name").text == "S. Hawking"
    assert tree.find(".//{*}orcid") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "phi4", "couplings": {"kappa": 0.1}},
        {"couplings": {"beta": float("inf")}},
        {"couplings": {}},
        {"shape": (4, 4)},
        {"shape": (4, 4, 4, 0)},
        {"shape": (4, 4, 4, 4.0)},
        {"couplings": {"beta": "6.0"}},
        {"uri": "no address"},
        {"project": "two\nlines"},
        {"collaboration": ""},
    ],
    ids=str,
)
def test_what_the_schema_refuses_is_refused_before(wrong):
    with pytest.raises(UsageError):
        replace(ENSEMBLE, **wrong)


def test_text_that_xml_cannot_hold_is_refused():
    with pytest.raises(UsageError, match="write one line of text"):
        qcdml_ensemble(replace(ENSEMBLE, algorithm=replace(HMC, parameters={"note": "a\0b"})))
    with pytest.raises(UsageError, match="isn't an address"):
        replace(ENSEMBLE, uri="mc://ldg/\0")


@pytest.fixture
def runs(tmp_path):
    """Make a folder with two runs: the second reads what the first made, and a file from elsewhere."""
    (tmp_path / "elsewhere.txt").write_text("from elsewhere")
    first = Run(tmp_path / "data" / "chain", {"beta": 6.0}, seed=1, workflow="make")
    first.output(first.out / "a b.dat").write_bytes(os.urandom(1000))
    first.output(first.out / "copy.dat").write_bytes((first.out / "a b.dat").read_bytes())
    first.save()
    second = Run(tmp_path / "data" / "mean", {"n": [1, {"x": None}]}, seed=2, workflow="average")
    second.input(first.out / "a b.dat")
    second.input(tmp_path / "elsewhere.txt")
    second.output(second.out / "mean.json").write_text("0.5")
    second.save()
    return tmp_path / "data"


def test_prov_is_read_by_the_library_of_the_standard(runs):
    model = pytest.importorskip("prov.model")
    told = model.ProvDocument.deserialize(content=json.dumps(prov(runs / "mean", *ABOUT.creators)))
    (activity,) = told.get_records(model.ProvActivity)
    record = json.loads((runs / "mean" / "provenance.json").read_text())
    assert activity.get_startTime().isoformat() == record["started"]
    assert activity.identifier.uri.replace("-", "").endswith(record["id"])
    entities = {entity.identifier.uri for entity in told.get_records(model.ProvEntity)}
    sums = {file["sha256"] for part in ("inputs", "outputs") for file in record[part].values()}
    assert entities == {f"hash://sha256/{digits}" for digits in sums}
    agents = {agent.identifier.uri for agent in told.get_records(model.ProvAgent)}
    assert f"https://orcid.org/{ANNA.orcid}" in agents and any(a.startswith("pkg:pypi/numpy@") for a in agents)
    kinds = [type(r).__name__ for r in told.get_records(model.ProvRelation)]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {
        "ProvUsage": 2, "ProvGeneration": 1, "ProvDerivation": 2, "ProvAssociation": len(agents)
    }
    made, used = ({file["sha256"] for file in record[part].values()} for part in ("outputs", "inputs"))
    for derivation in told.get_records(model.ProvDerivation):
        generated, source, *_ = (end.localpart for end in derivation.args if end)
        assert generated in made and source in used
    again = model.ProvDocument.deserialize(content=told.serialize())
    assert again == told and again.unified() == told.unified()


def test_relations_name_what_there_is(runs):
    told = prov(runs / "chain", ANNA)
    known = {**told["entity"], **told["activity"], **told["agent"]}
    for kind in ("used", "wasGeneratedBy", "wasAssociatedWith", "wasDerivedFrom"):
        assert all(end in known for row in told[kind].values() for end in row.values())
    (entity,) = told["entity"].values()
    assert entity["prov:label"] == ["a b.dat", "copy.dat"] and entity["itwin:bytes"] == 1000
    assert told["used"] == told["wasDerivedFrom"] == {}


def test_crate_is_read_by_rocrate(runs):
    ro_crate(runs, ABOUT)
    crate = ROCrate(runs)
    assert crate.name == ABOUT.title and crate.license.id == ABOUT.licence
    assert [person["name"] for person in crate.root_dataset["author"]] == [p.name for p in ABOUT.creators]
    files = {path.relative_to(runs).as_posix(): path for path in runs.rglob("*") if path.is_file()}
    listed = {file["name"]: file for file in crate.get_by_type("File") if file in crate.data_entities}
    assert set(listed) == set(files) - {"ro-crate-metadata.json"}
    for name, file in listed.items():
        assert file["sha256"] == sha256(files[name])
        assert file["contentSize"] == str(files[name].stat().st_size)
    actions = {action["name"]: action for action in crate.get_by_type("CreateAction")}
    objects = {file["name"]: file for file in actions["average"]["object"]}
    assert objects["elsewhere.txt"]["sha256"] == sha256(runs.parent / "elsewhere.txt")
    assert objects["elsewhere.txt"] not in crate.data_entities
    assert {file["sha256"] for file in objects.values()} > {sha256(runs / "chain" / "a b.dat")}
    assert actions["average"]["result"]["name"] == "mean/mean.json" and "object" not in actions["make"]
    software = actions["average"]["instrument"]
    assert software["name"] == "itwin_nb" and "numpy" in {s["name"] for s in software["softwareRequirements"]}
    assert all(part["url"] and part["version"] for part in [software, *software["softwareRequirements"]])
    assert actions["average"]["agent"].id == f"https://orcid.org/{ANNA.orcid}"


def test_crate_can_be_copied_and_made_again(runs, tmp_path):
    ro_crate(runs, ABOUT)
    ROCrate(runs).write(tmp_path / "copy")
    names = {path.relative_to(runs) for path in runs.rglob("*")}
    assert names == {path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*")}
    before = (runs / "ro-crate-metadata.json").read_text()
    ro_crate(runs, ABOUT)
    assert (runs / "ro-crate-metadata.json").read_text() == before


def test_changed_output_is_noticed(runs):
    (runs / "chain" / "a b.dat").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="isn't what its run made"):
        ro_crate(runs, ABOUT)
    assert not (runs / "ro-crate-metadata.json").exists()


def test_output_that_was_removed_is_named(runs):
    digits = sha256(runs / "mean" / "mean.json")
    (runs / "mean" / "mean.json").unlink()
    ro_crate(runs, ABOUT)
    (action,) = (a for a in ROCrate(runs).get_by_type("CreateAction") if a["name"] == "average")
    assert action["result"]["sha256"] == digits


def test_datacite_is_valid(runs):
    schema45 = pytest.importorskip("datacite.schema45")
    schema45.validator.validate(datacite(runs, ABOUT))
    schema45.validator.validate(datacite(runs, replace(ABOUT, keywords=(), citations=())))


def test_documents_are_plain_json(runs):
    write_json(runs / "prov.json", prov(runs / "mean", ANNA))
    assert json.loads((runs / "prov.json").read_text()) == prov(runs / "mean", ANNA)
