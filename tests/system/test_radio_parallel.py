"""One recording from many workers: the same bytes as from one process, whatever happens to them on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from dask.distributed import get_task_stream

from itwin_nb.compute import make_cluster
from itwin_nb.core.errors import OutputError
from itwin_nb.core.files import sha256
from itwin_nb.lake.datacatalog import open_catalog
from itwin_nb.lake.lake import Lake
from itwin_nb.radio.formats import open_observation
from itwin_nb.radio.interference import Interference
from itwin_nb.radio.source import Pulsar
from itwin_nb.radio.synthesis import Observation, simulate
from itwin_nb.radio.telescope import Telescope

ITWIN = Path(sys.executable).with_name("itwin")
COPIES = Path(os.environ.get("ITWIN_DATA", Path(__file__).parents[3] / "shared" / "data")) / "radio"
TOOLS = Path(os.environ.get("ITWIN_TEST_RADIO", "/var/tmp/itwin-radio"))
SUFFIXES = (".fil", ".fits")
FRAGMENT_S = 256 * 102.4e-6
LONG = 300  # s, for what takes some on an idle machine
PROGRESS = re.compile(r"^\[\d+/[\d?]+\] .*\n", re.MULTILINE)


def observe(duration_s=30.0, seed=7, source="Crab", families=("carrier", "impulse", "drifting"), **changes):
    """Blocks of 6.7 s at Effelsberg, with a gain that drifts, scintillation and interference across their edges."""
    receiver = replace(Telescope.preset("Effelsberg_7beam"), **changes)
    disturbances = tuple(map(Interference.preset, families))
    whole_s = round(duration_s / FRAGMENT_S) * FRAGMENT_S
    return simulate(Observation(receiver, (Pulsar.catalogue(source),), disturbances, whole_s, seed=seed))


def checksums(path):
    return sha256(path), sha256(path.with_suffix(".truth.csv"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Checksums of files that this process writes alone, by suffix and duration."""
    folder, made = tmp_path_factory.mktemp("alone"), {}

    def get(suffix, duration_s=30.0):
        if (suffix, duration_s) not in made:
            path = observe(duration_s).write(folder / f"file{suffix}")
            made[suffix, duration_s] = checksums(path)
            path.unlink()
        return made[suffix, duration_s]

    return get


def write_together(folder, client, alone):
    """Write both formats with a cluster, compare them, and return which workers took part in each."""
    took_part = []
    for suffix in SUFFIXES:
        with get_task_stream(client) as tasks:
            path = observe().write(folder / f"file{suffix}", client=client)
        assert checksums(path) == alone(suffix)
        took_part.append({task["worker"] for task in tasks.data})
    assert {path.suffix for path in folder.iterdir()} == {".fil", ".fits", ".csv"}
    return took_part


# Any number of workers, here and on SLURM


@pytest.mark.parametrize("workers", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_same_bytes_from_any_number_of_workers(tmp_path, alone, workers):
    with make_cluster("local", jobs=workers) as client:
        assert list(map(len, write_together(tmp_path, client, alone))) == [workers, workers]


@pytest.mark.slurm
def test_same_bytes_from_slurm(tmp_path, alone):
    with make_cluster("test", {"patience": 90.0}, jobs=2) as client:
        client.wait_for_workers(2, timeout=90)
        assert list(map(len, write_together(tmp_path, client, alone))) == [2, 2]


def test_another_seed_gives_other_bytes(tmp_path, alone):
    path = observe(seed=8).write(tmp_path / "file.fil")
    assert all(mine != theirs for mine, theirs in zip(checksums(path), alone(".fil")))


# What may happen on the way


def parts(folder):
    """List the files that are being written: sparse at first, with more and more on the disk."""
    return [path for path in folder.glob(".*") if path.suffix in SUFFIXES]


def wait_for_samples(folder, megabytes=5, running=lambda: True):
    end = time.monotonic() + LONG
    while not any(path.stat().st_blocks * 512 > megabytes * 1e6 for path in parts(folder)):
        assert running() and time.monotonic() < end, "nothing is being written"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_worker_changes_nothing(tmp_path, alone, suffix):
    path, expected = tmp_path / f"file{suffix}", alone(suffix, 80.0)
    with make_cluster("local", jobs=2) as client, ThreadPoolExecutor(1) as pool:
        pids = client.run(os.getpid)
        writing = pool.submit(observe(80.0).write, path, client)
        wait_for_samples(tmp_path, running=lambda: not writing.done())
        victim = next(worker for worker, tasks in client.processing().items() if tasks)
        os.kill(pids[victim], signal.SIGKILL)
        assert not writing.done() and not path.exists()
        writing.result(timeout=LONG)
    assert checksums(path) == expected and parts(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_disk_that_is_too_small(small_disk, suffix):
    disk = small_disk(60)
    with pytest.raises(OutputError, match=r"will have 0\.07\d+ GB, but .* are left on its disk: free some space"):
        observe().write(disk / f"file{suffix}")
    assert list(disk.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_disk_that_fills_up_meanwhile(small_disk, suffix, workers):
    """Somebody else takes the space that was there when the file was begun."""
    disk = small_disk(60)
    client = make_cluster("local", jobs=workers) if workers else None
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(observe(20.0).write, disk / f"file{suffix}", client)
        while not parts(disk):
            assert not writing.done(), writing.result()
        with pytest.raises(OSError), open(disk / "rubbish", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        with pytest.raises(OutputError, match="no space left on device; free some space, or choose another folder"):
            writing.result(timeout=LONG)
    if client:
        client.close()
    assert [path.name for path in disk.iterdir()] == ["rubbish"]


# The workflows, as users run them


def start(folder, *words, **environment):
    command = [ITWIN, "run", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **pipes)


def finish(process, status=0):
    """Wait for the end and return what was said on stderr, without lines that show progress."""
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == status, stderr
    return PROGRESS.sub("", stderr)


def values(out):
    return {name: one["value"] for name, one in json.loads((out / "results.json").read_text()).items()}


ASKED = {"duration_s": 30.0, "interference": "carrier,impulse,drifting", "seed": 7}


def words(**parameters):
    return [word for name, value in (ASKED | parameters).items() for word in ("-p", name, value)]


def check_synthesis(out, path, synthesis):
    """Compare what the workflow says with the truth of the same observation, and with its own record."""
    found, truth = values(out), synthesis.truth()
    samples = 1144 * 256 * 256  # of 30 s: fragments, times, channels
    bursts = {event for events in truth.events for event in events.split() if event.startswith("Crab:")}
    assert found["samples"] == samples and found["bytes"] == path.stat().st_size
    assert samples < found["bytes"] < 1.01 * samples
    assert found["fragments"] == len(truth) == 1144
    assert found["pulses"] == len(bursts) > 0
    for kind in ("pulse", "nbrfi", "bbrfi"):
        assert found[f"share_{kind}"] == pytest.approx(truth[kind].mean()) and 0 < found[f"share_{kind}"] <= 1
    assert found["rate"] == pytest.approx(samples / found["seconds"] / 1e6)
    record = json.loads((out / "provenance.json").read_text())
    assert record["seed"] == 7 and record["parameters"]["observation"]["duration_s"] == pytest.approx(1144 * FRAGMENT_S)
    assert record["outputs"][path.name]["sha256"] == sha256(path)
    assert set(record["outputs"]) == {path.name, path.with_suffix(".truth.csv").name}


@pytest.mark.parametrize(("name", "workers"), [("observation.fil", 1), ("observation.fits", 2)])
def test_synthesis_workflow(tmp_path, alone, name, workers):
    finish(start(tmp_path, "radio_synthesis", *words(name=name, workers=workers), "--out", "run"))
    path = tmp_path / "run" / name
    assert checksums(path) == alone(path.suffix)
    check_synthesis(tmp_path / "run", path, observe())


@pytest.mark.slow
@pytest.mark.slurm
def test_synthesis_workflow_on_slurm(tmp_path, alone):
    site = {"partition": "batch", "interface": "lo", "memory": "1500 MiB", "patience": 90, "scratch": str(tmp_path / "scratch")}
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "mine.yaml").write_text(yaml.safe_dump(site))
    finish(start(tmp_path, "radio_synthesis", *words(workers=2), "--on", "mine", "--out", "run"))
    path = tmp_path / "run" / "observation.fil"
    assert checksums(path) == alone(".fil")
    check_synthesis(tmp_path / "run", path, observe())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_synthesis_leaves_no_part_and_is_made_again(tmp_path, alone, workers):
    asked = words(duration_s=80.0, workers=workers)
    process, out = start(tmp_path, "radio_synthesis", *asked, "--out", "run"), tmp_path / "run"
    wait_for_samples(out, running=lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    said = finish(process, status=130)
    assert "--resume" in said.splitlines()[-1] and "Traceback" not in said
    assert parts(out) == [] and not list(out.glob("observation.*")) and not (out / "results.json").exists()
    finish(start(tmp_path, "radio_synthesis", "--out", "run", "--resume"))
    assert checksums(out / "observation.fil") == alone(".fil", 80.0)


def test_killed_synthesis_is_made_again(tmp_path, alone):
    """Nobody can tidy up after SIGKILL; whoever resumes does."""
    asked = words(duration_s=80.0)
    process, out = start(tmp_path, "radio_synthesis", *asked, "--out", "run"), tmp_path / "run"
    wait_for_samples(out, running=lambda: process.poll() is None)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        one.kill()
    process.communicate(timeout=LONG)
    psutil.wait_procs(family, timeout=LONG)
    assert len(parts(out)) == 1 and not (out / "observation.fil").exists()
    finish(start(tmp_path, "radio_synthesis", "--out", "run", "--resume"))
    assert checksums(out / "observation.fil") == alone(".fil", 80.0) and parts(out) == []


@pytest.mark.slow
def test_synthesis_on_a_disk_that_is_too_small(small_disk, tmp_path):
    run = small_disk(60) / "run"
    said = finish(start(tmp_path, "radio_synthesis", *words(), "--out", run), status=1)
    assert said.count("\n") == 1 and "are left on its disk: free some space" in said
    assert parts(run) == [] and not list(run.glob("observation.*"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["-p", "source", "Krab"], "There is no 'Krab' in the catalogue of pulsars: there are Crab, Vela"),
        (["-p", "telescope", "Hubble"], "There is no 'Hubble' in the catalogue of telescopes"),
        (["-p", "interference", "carrier,rain"], "There is no 'rain' in the catalogue of interference"),
        (["-p", "nbits", "3"], "A sample of 3 bits can't be written"),
        (["-p", "name", "observation.wav"], "The suffix '.wav' of"),
    ],
)
def test_wrong_request_is_one_sentence(tmp_path, asked, sentence):
    said = finish(start(tmp_path, "radio_synthesis", *asked, "--out", "run"), status=2)
    assert said.count("\n") == 1 and sentence in said and not (tmp_path / "run").exists()


# Read by others


def peers():
    """Name the Pythons of the tools that live elsewhere, as far as tests/system/radio-tools has made them."""
    made = [tool for tool in ("blimpy", "sigpyproc") if (TOOLS / tool / "installed").exists()]
    return {f"ITWIN_{tool.upper()}_PYTHON": str(TOOLS / tool / "bin" / "python") for tool in made}


def test_crosscheck_workflow_finds_its_own_pulsar(tmp_path):
    environment = peers()
    finish(start(tmp_path, "radio_crosscheck", "--out", "run", **environment))
    found = values(tmp_path / "run")
    expected = 1 / Pulsar.catalogue("Vela").spin.at(60000.0).f0_hz
    error = json.loads((tmp_path / "run" / "results.json").read_text())["period"]["error"]
    assert found["tools"] == 1 + len(environment)
    assert found["period_expected"] == expected and abs(found["period"] - expected) < 3 * error < 1e-3 * expected
    assert found["snr"] > 50
    samples = open_observation(tmp_path / "run" / "vela.fil").read()
    for tool in ("itwin_nb", "your"):
        assert found[f"mean_{tool}"] == pytest.approx(samples.mean())
    assert found["crc32_your"] == found["crc32_itwin_nb"]


@pytest.mark.slow
def test_crosscheck_workflow_reads_psrfits(tmp_path):
    path = observe(source="B0329+54", families=()).write(tmp_path / "file.fits")
    finish(start(tmp_path, "radio_crosscheck", "-p", "path", path, "--out", "run", **peers()))
    found = values(tmp_path / "run")
    assert found["snr"] > 20 and found["crc32_astropy"] == found["crc32_your"] == found["crc32_itwin_nb"]
    assert str(path) in json.loads((tmp_path / "run" / "provenance.json").read_text())["inputs"]


@pytest.mark.parametrize(
    ("name", "nbits", "samples", "reason"),
    [
        ("file.fil", 4, 262144, "nbits=4 not supported"),
        ("file.fits", 8, 262147, "other numbers"),  # the last row isn't full, and `your` takes its rest for samples
    ],
)
def test_crosscheck_workflow_fails_if_a_tool_reads_something_else(tmp_path, name, nbits, samples, reason):
    receiver, pulsar = replace(Telescope.preset("Effelsberg_7beam"), nbits=nbits), Pulsar.catalogue("B0329+54")
    path = simulate(Observation(receiver, (pulsar,), duration_s=samples * receiver.tsamp_s)).write(tmp_path / name)
    said = finish(start(tmp_path, "radio_crosscheck", "-p", "path", path, "--out", "run"), status=1)
    assert said.count("\n") == 1 and "isn't read as we read it by your" in said and reason in said
    assert not (tmp_path / "run" / "results.json").exists()


# Found by its name


def test_run_in_the_lake_is_read_through_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("ITWIN_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    synthesis, folder = observe(5.0), tmp_path / "run"
    for suffix in SUFFIXES:
        synthesis.write(folder / f"observation{suffix}")
    Lake().put_folder(folder, "radio:crab-test")
    shelf = open_catalog().radio
    for name in ("simulated-filterbank", "simulated-psrfits"):
        recording = shelf[name](observation="crab-test")
        assert recording.header.source == "Crab" and np.array_equal(recording.read(), synthesis.read())
    truth = shelf["simulated-truth"](observation="crab-test")
    pd.testing.assert_frame_equal(truth, synthesis.truth(), rtol=1e-5, check_dtype=False)


def test_published_recording_is_what_the_catalogue_says():
    source = open_catalog().radio["parkes-uwl-crab"].source
    if not (COPIES / Path(source.path).name).exists():
        pytest.skip(f"{source.path} isn't here: get it from {source.repository}")
    recording = open_catalog(copies=COPIES).radio["parkes-uwl-crab"]()
    ends = recording.header.frequencies_mhz[[0, -1]]
    assert recording.header.nchans == 832 and ends.tolist() == [4030, 706] and 2.0 < recording.duration_s < 2.2


def test_catalogue_of_the_package_becomes_one_of_intake(tmp_path):
    import intake

    path = open_catalog().radio.to_intake(tmp_path / "intake.yaml")
    assert set(intake.open_catalog(str(path))) == {"simulated-filterbank", "simulated-psrfits", "simulated-truth"}
