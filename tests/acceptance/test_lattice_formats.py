"""Read the gauge configurations that other codes wrote, reproduce their published figures, and refuse damaged copies.

The files lie outside the repository (``../shared/data/lattice``; ITWIN_DATA names another place) and are not
distributed with it: where they are absent these tests skip. The chapter nbs/lattice/03_formats.ipynb makes the same
checks on files that the project writes itself.
"""

import os
from pathlib import Path

import numpy as np
import papermill
import pytest

from itwin_nb.core.errors import InputError
from itwin_nb.core.files import sha256
from itwin_nb.core.provenance import Run
from itwin_nb.lattice.formats import plaquette, read_config, write_config

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ITWIN_DATA", ROOT.parent / "shared" / "data")) / "lattice"
FIGURES = {
    "ildg.l8t4b3360": (0.5038664469, 5e-11, (4, 8, 8, 8), "SU(3)"),
    "nersc.l8t4b3360": (0.5038664469, 5e-11, (4, 8, 8, 8), "SU(3)"),
    "weak_field.lime": (0.9948041, 5e-8, (8, 4, 4, 4), "SU(3)"),
    "conf_00000100_4444nc2.ildg": (0.6684749, 5e-8, (4, 4, 4, 4), "SU(2)"),
}


@pytest.fixture
def real():
    """Give the path of a real file by its name, or skip."""

    def find(name):
        if not (DATA / name).exists():
            pytest.skip(f"{DATA / name} is not here: others published it, the project does not distribute it")
        return DATA / name

    return find


@pytest.mark.parametrize("name", FIGURES)
def test_published_figures(real, name):
    value, rounding, shape, group = FIGURES[name]
    links = read_config(real(name))
    assert links.dims == ("t", "z", "y", "x", "mu", "row", "col") and links.dtype == np.complex128
    assert links.shape[:4] == shape and links.attrs["group"] == group
    assert abs(plaquette(links) - value) < rounding
    assert links.attrs["violation"] < 1e-12


def test_two_formats_one_configuration(real):
    ildg, nersc = read_config(real("ildg.l8t4b3360")), read_config(real("nersc.l8t4b3360"))
    assert np.abs(ildg.values - nersc.values).max() < 1e-15  # the copies differ in the last bits
    assert (ildg.attrs["suma"], ildg.attrs["sumb"]) == ("10d0ea1a", "a6a1b3b8")
    assert nersc.attrs["CHECKSUM"] == "b379560a" and "NERSC checksum" in nersc.attrs["checks"]
    assert "plaquette, link trace" in nersc.attrs["checks"]


def test_chroma_checksum(real):
    header = read_config(real("weak_field.lime")).attrs
    assert (header["suma"], header["sumb"]) == ("a2c41090", "11193c39") and "SciDAC checksum" in header["checks"]


def test_bare_record_says_what_it_assumed(real):
    path = real("conf_00000100_4444nc2.ildg")
    assert read_config(path).attrs["checks"] == "length, hypercube assumed, SU(2) matrices"
    assert read_config(path, shape=(4, 4, 4, 4)).attrs["checks"] == "length for the given shape, SU(2) matrices"
    with pytest.raises(InputError, match="are no links of shape"):
        read_config(path, shape=(4, 4, 4, 5))


@pytest.mark.parametrize("format_", ["ildg", "nersc"])
@pytest.mark.parametrize("name", FIGURES)
def test_round_trip_keeps_every_bit(real, tmp_path, name, format_):
    links = read_config(real(name))
    back = read_config(write_config(links, tmp_path / "copy", format=format_))
    assert (back.values == links.values).all()
    if format_ == "ildg" and "suma" in links.attrs:
        assert (back.attrs["suma"], back.attrs["sumb"]) == (links.attrs["suma"], links.attrs["sumb"])
    if format_ == "nersc" and "CHECKSUM" in links.attrs:
        assert back.attrs["CHECKSUM"] == links.attrs["CHECKSUM"]


@pytest.mark.parametrize("name", ["ildg.l8t4b3360", "nersc.l8t4b3360", "weak_field.lime"])
@pytest.mark.parametrize("at", [0.3, 0.5, 0.9])
def test_flipped_byte(real, tmp_path, name, at):
    data = bytearray(real(name).read_bytes())
    data[int(at * len(data))] ^= 0x10
    assert "checksum of the links is" in refusal(tmp_path, data)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("kept", [1, 100, 200, 0.5, -700, -8, -1])
def test_truncated(real, tmp_path, name, kept):
    data = real(name).read_bytes()
    message = refusal(tmp_path, data[: int(kept * len(data)) if kept == 0.5 else kept])
    assert any(words in message for words in ("truncated", "binary data have", "no END_HEADER", "known format"))


def test_bytes_too_many(real, tmp_path):
    assert "binary data have" in refusal(tmp_path, real("nersc.l8t4b3360").read_bytes() + b"\n")
    assert "truncated" in refusal(tmp_path, real("weak_field.lime").read_bytes() + b"\n")


@pytest.mark.parametrize(
    "name, old, new, words",
    [
        ("nersc.l8t4b3360", b"CHECKSUM = b379560a", b"CHECKSUM = b379560b", "NERSC checksum"),
        ("nersc.l8t4b3360", b"PLAQUETTE = 0.5038664469", b"PLAQUETTE = 0.5038764469", "plaquette"),
        ("nersc.l8t4b3360", b"LINK_TRACE = 0.0054", b"LINK_TRACE = 0.0055", "link trace"),
        ("nersc.l8t4b3360", b"DIMENSION_4 = 4", b"DIMENSION_4 = 6", "binary data have"),
        ("nersc.l8t4b3360", b"IEEE64BIG", b"IEEE64LITTLE", "NERSC checksum"),
        ("nersc.l8t4b3360", b"GAUGE_3x3", b"GAUGE", "binary data have"),
        ("ildg.l8t4b3360", b"<lx>8", b"<lx>4", "binary data have"),
        ("ildg.l8t4b3360", b"<precision>64", b"<precision>32", "binary data have"),
        ("ildg.l8t4b3360", b"su3gauge", b"su2gauge", "binary data have"),
        ("ildg.l8t4b3360", b"10d0ea1a", b"10d0ea1b", "SciDAC checksum"),
        ("ildg.l8t4b3360", b"ildg-binary-data", b"ildg-binary-dada", "0 ildg-binary-data records"),
        ("ildg.l8t4b3360", b"</ildgFormat>", b"</ildgformat>", "XML"),
        ("weak_field.lime", b"<lt>8", b"<lt>4", "ildg-format says"),
    ],
)
def test_headers_that_lie(real, tmp_path, name, old, new, words):
    data = real(name).read_bytes()
    assert data.count(old) == 1
    assert words in refusal(tmp_path, data.replace(old, new))


def refusal(folder, data):
    """Return the one sentence with which reading these bytes ends."""
    (folder / "damaged").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_config(folder / "damaged")
    message = str(caught.value)
    assert message.startswith(f"Cannot read {folder / 'damaged'}: ") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["weak_field.lime", "own"])
def test_workflow_measures_and_records(real, tmp_path, name):
    path = own_configuration(tmp_path / "own") if name == "own" else real(name)
    papermill.execute_notebook(
        ROOT / "nbs" / "workflows" / "lattice_measure.ipynb",
        tmp_path / "executed.ipynb",
        parameters={"path": str(path), "out": str(tmp_path / "out")},
        progress_bar=False,
    )
    run, links = Run.read(tmp_path / "out"), read_config(path)
    assert run.workflow == "lattice_measure" and run.inputs[str(path.resolve())]["sha256"] == sha256(path)
    assert run.results["plaquette"]["value"] == pytest.approx(plaquette(links), rel=1e-14)
    assert run.results["checks"]["value"] == links.attrs["checks"]
    averages = [run.results[f"plaquette_{part}"]["value"] for part in ("spatial", "temporal")]
    assert np.mean(averages) == pytest.approx(plaquette(links), rel=1e-14)


def own_configuration(path):
    """Write a random SU(2) field in NERSC format."""
    q = np.random.default_rng(1).normal(size=(4, 2, 4, 2, 4, 4))
    a, b, c, d = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = np.stack([a + 1j * b, c + 1j * d, -c + 1j * d, a - 1j * b], axis=-1)
    return write_config(rows.reshape(4, 2, 4, 2, 4, 2, 2), path, format="nersc")
