"""The tools of radio astronomers read what we write: every bit depth, the same header and samples, without a complaint.

`your`, astropy and riptide live beside the package (extra `pulsar`). blimpy and sigpyproc have environments of their own, which
tests/system/radio-tools makes; where a tool isn't there, its tests skip.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from itwin_nb.radio.crosscheck import crosscheck, dedispersed_series, fold, fold_series
from itwin_nb.radio.formats import create, open_observation
from itwin_nb.radio.ism import dispersion_delay
from itwin_nb.radio.recording import DTYPES, Header

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("ITWIN_DATA", ROOT.parent / "shared" / "data")) / "radio" / "parkes_8bit_2.fil"
TOOLS = Path(os.environ.get("ITWIN_TEST_RADIO", "/var/tmp/itwin-radio"))
AWAY = ("blimpy", "sigpyproc")
BITS = (1, 2, 4, 8, 16, 32)
READS = {  # which files a tool reads at all: (suffix, polarisations)
    "your": [(".fil", 1), (".fil", 4), (".fits", 1), (".fits", 4)],
    "astropy": [(".fits", 1), (".fits", 4)],
    "blimpy": [(".fil", 1), (".fil", 4)],
    "sigpyproc": [(".fil", 1), (".fits", 1)],  # total intensity alone
}
CANNOT = {  # (tool, suffix, polarisations, bits): what it says instead
    **{("your", ".fil", npol, bits): f"nbits={bits} not supported" for npol in (1, 4) for bits in (1, 2, 4)},
    **{("your", ".fits", npol, 1): "cannot reshape" for npol in (1, 4)},  # it unpacks 2 and 4 bits alone
    **{("blimpy", ".fil", npol, bits): "unsupported" for npol in (1, 4) for bits in (1, 2, 4)},  # whole bytes alone
    ("sigpyproc", ".fits", 1, 32): "Unsupported NBITS=32",
}
OTHERWISE = {  # what a tool reads without a word, but otherwise than the standard has it
    **{("your", ".fits", 4, bits): "it mixes up polarisations and channels when it unpacks bits" for bits in (2, 4)},
    ("sigpyproc", ".fits", 1, 2): "it takes 2 bits for the levels of a digitiser: -2, -0.5, 0.5, 2",
}
CASES = [(tool, *file, bits) for tool, files in READS.items() for file in files for bits in BITS]


@pytest.fixture
def python(monkeypatch):
    """Let crosscheck ask one tool of those that live elsewhere, or skip."""
    for name in AWAY:
        monkeypatch.delenv(f"ITWIN_{name.upper()}_PYTHON", raising=False)

    def choose(tool):
        program = TOOLS / tool / "bin" / "python"
        if not (TOOLS / tool / "installed").exists():
            pytest.skip(f"{tool} isn't here: tests/system/radio-tools makes an environment for it")
        monkeypatch.setenv(f"ITWIN_{tool.upper()}_PYTHON", str(program))
        return program

    return choose


def write(path, npol=1, nbits=8, n_samples=2048):
    """Write samples that use all bits."""
    header = Header(
        1530.0, -1.25, 64, 102.4e-6, nbits, npol, 59000.48386574, "B0531+21", "Effelsberg", ra_deg=83.633, dec_deg=22.0145
    )
    samples = np.random.default_rng(nbits).integers(0, 2 ** min(nbits, 16), (n_samples, npol, 64))
    with create(path, header, n_samples) as file:
        file.write(0, samples.astype(DTYPES[nbits]))
    return path, samples


@pytest.mark.parametrize("tool, suffix, npol, nbits", CASES)
def test_tool_reads_what_we_write(python, tmp_path, tool, suffix, npol, nbits):
    if tool in AWAY:
        python(tool)
    path, samples = write(tmp_path / f"file{suffix}", npol, nbits)
    table = crosscheck(path)
    ours, theirs = table.loc["itwin_nb"], table.loc[tool]
    assert ours["mean"] == pytest.approx(samples.mean()) and ours["std"] == pytest.approx(samples.std())
    if words := CANNOT.get((tool, suffix, npol, nbits)):
        assert words in theirs["complaint"] and not theirs["agrees"]
    elif (tool, suffix, npol, nbits) in OTHERWISE:
        assert not theirs["agrees"] and not theirs["complaint"]
    else:
        assert theirs["agrees"], theirs.to_dict()


def test_sigpyproc_reads_two_bits_as_levels(python, tmp_path):
    """All that sets it apart from the other depths is a table of four values."""
    python("sigpyproc")
    path, samples = write(tmp_path / "file.fits", nbits=2)
    levels = np.array([-2, -0.5, 0.5, 2])[samples]
    theirs = crosscheck(path).loc["sigpyproc"]
    assert theirs["mean"] == pytest.approx(levels.mean()) and theirs["std"] == pytest.approx(levels.std(), rel=1e-4)


@pytest.mark.parametrize("tool", ["your", *AWAY])
def test_tool_and_we_read_the_same_in_a_real_file(python, tool):
    if not REAL.exists():
        pytest.skip(f"{REAL} is not here: others published it, the project does not distribute it")
    if tool in AWAY:
        python(tool)
    assert crosscheck(REAL).loc[tool, "agrees"]


@pytest.mark.parametrize("nbits", BITS)
def test_riptide_reads_the_header(tmp_path, nbits):
    """It has no use for channels: of a filterbank it reads the header alone, and folds a series made by others."""
    sigproc = pytest.importorskip("riptide.reading.sigproc")
    path, samples = write(tmp_path / "file.fil", nbits=nbits)
    header = sigproc.SigprocHeader(str(path))
    assert (header["nbits"], header.nsamp, header["tsamp"]) == (nbits, len(samples), 102.4e-6)
    assert len(path.read_bytes()[header.bytesize :]) == samples.size * nbits // 8


PERIOD_S, DM = 0.0333924123, 56.77
SERIES = "import sys, numpy; from sigpyproc.readers import FilReader; "
SERIES += "numpy.save(sys.argv[2], FilReader(sys.argv[1]).dedisperse(float(sys.argv[3])).data)"


@pytest.fixture
def pulsar(tmp_path):
    """Write twelve seconds of noise with a dispersed pulse of half a sigma."""
    header = Header(1530.0, -5.0, 64, 256e-6, source="B0531+21", ra_deg=83.633, dec_deg=22.0145)
    time_s = header.tsamp_s * np.arange(46875)[:, None]
    phase = ((time_s - dispersion_delay(DM, header.frequencies_mhz)) / PERIOD_S + 0.5) % 1 - 0.5
    noise = np.random.default_rng(7).normal(size=phase.shape)
    power = 128 + 20 * noise + 10 * np.exp(-0.5 * (phase / 0.01) ** 2)
    with create(tmp_path / "pulsar.fil", header, len(phase)) as file:
        file.write(0, np.rint(power).clip(0, 255).astype(np.uint8)[:, None])
    return tmp_path / "pulsar.fil"


def test_riptide_finds_the_pulsar(pulsar):
    """S/N of a boxcar: at most that of a matched filter, which is amplitude/sigma sqrt(N) times the pulse's norm."""
    found = fold(pulsar, 1.002 * PERIOD_S, DM)
    assert abs(found.period_s - PERIOD_S) < 2 * found.error_s < 1e-4 * PERIOD_S
    norm = np.sqrt(np.sqrt(np.pi) * 0.01 * 46875)  # of exp(-x^2 / 2w^2), w = 0.01 turns, over all samples
    matched = np.sqrt(64) * 10 / 20 * norm
    assert 0.85 * matched < found.snr < 1.02 * matched


def test_sigpyproc_dedisperses_alike(python, pulsar, tmp_path):
    """Its delays, rounded by itself, give the same series to a sample here and there, and the same pulsar."""
    program = python("sigpyproc")
    command = [program, "-c", SERIES, pulsar, tmp_path / "series.npy", str(DM)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    recording = open_observation(pulsar)
    ours, theirs = dedispersed_series(recording, DM), np.load(tmp_path / "series.npy")
    size = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) <= 2 and np.corrcoef(ours[:size], theirs[:size])[0, 1] > 0.95
    both = [fold_series(series, recording.header.tsamp_s, PERIOD_S) for series in (ours, theirs)]
    assert both[0].snr == pytest.approx(both[1].snr, rel=0.01)
    assert abs(both[0].period_s - both[1].period_s) <= both[0].error_s


def test_psrsigsim_tells_its_cost():
    """The peer of the benchmark runs, and says what it computed."""
    program = TOOLS / "psrsigsim" / "bin" / "python"
    if not (TOOLS / "psrsigsim" / "installed").exists():
        pytest.skip("psrsigsim isn't here: tests/system/radio-tools makes an environment for it")
    command = [program, ROOT / "nbs" / "benchmarks" / "psrsigsim_peer.py", "0.128"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    figures = json.loads(done.stdout)
    assert figures["samples"] == 256 * 2000 and figures["cpu_s"] > 0 and figures["peak_bytes"] > 1e8
