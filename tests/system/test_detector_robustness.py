"""Full simulation where little can be relied on: no terminal, no home, no wheel or another one, and workers that are killed."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from dask.distributed import Client, LocalCluster

from itwin_nb.core.errors import InputError, ItwinError, MissingExtra
from itwin_nb.detector import datafree
from itwin_nb.detector.geant4 import simulate, simulate_blocks
from itwin_nb.detector.geometry import Calorimeter

LONG = 240  # s, for what takes some on an idle machine
CALORIMETER = Calorimeter.preset("clic25")
RUN = {"energy": 0.2, "seed": 5, "progress": False}
SCRIPT = """
import sys
import numpy as np
from itwin_nb.core.errors import ItwinError
from itwin_nb.detector.geant4 import simulate
from itwin_nb.detector.geometry import Calorimeter

n, energy, workers, blocks, out = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
try:
    data = simulate(Calorimeter.preset("clic25"), n, energy=energy, seed=5, workers=workers, blocks=blocks or None,
                    progress=False)
except ItwinError as error:
    sys.exit(f"{type(error).__name__}: {error}")
np.save(out, data.ECAL.values)
print("DONE")
"""


def command(n, energy, workers, blocks, out):
    return [sys.executable, "-c", SCRIPT, *map(str, (n, energy, workers, blocks, out))]


def run(n, energy, workers, blocks, out, **how):
    how = {"stdin": subprocess.DEVNULL, "timeout": LONG} | how
    return subprocess.run(command(n, energy, workers, blocks, out), capture_output=True, text=True, **how)


def geant4_workers():
    """Processes of workers that anyone started, zombies too."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("detector.geant4 import _serve" in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def children(pid):
    return [p for p in psutil.Process(pid).children(recursive=True) if "_serve" in " ".join(p.cmdline())]


def wait_for(condition, job=None, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert not job or job.poll() is None, job.communicate()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def thousand():
    """1000 events in one go."""
    return simulate(CALORIMETER, 1000, **RUN).ECAL.values


# where there's no terminal and no home


def test_no_terminal_no_home_and_ci(tmp_path):
    """The wheel would ask, or under CI download, before it does anything; its home can't be written to."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o500)
    names = ("GEANT4_DATA_DIR", "G4ENSDFSTATEDATA", "G4LEDATA")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    environment = clean | {"CI": "true", "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    closed = ["bash", "-c", 'exec "$@" <&-', "closed", *command(20, 0.2, 1, "", tmp_path / "out.npy")]
    if os.getuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0:
        readonly = f'mount --bind {home} {home} && mount -o remount,ro,bind {home} && exec "$@"'
        closed = ["unshare", "-m", "bash", "-c", readonly, "readonly", *closed]
    done = subprocess.run(closed, env=environment, capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stdout) == (0, "DONE\n"), done.stderr
    assert "download" not in done.stderr and not list(home.iterdir())
    assert np.array_equal(np.load(tmp_path / "out.npy"), simulate(CALORIMETER, 20, **RUN).ECAL.values)


def test_geant4_prints_nothing_here(tmp_path):
    done = run(5, 0.2, 2, "", tmp_path / "out.npy")
    assert (done.stdout, done.stderr) == ("DONE\n", "")


# the wheel


def test_no_wheel(monkeypatch):
    monkeypatch.setitem(sys.modules, "geant4_pybind", None)
    with pytest.raises(MissingExtra, match=r"^The module geant4_pybind isn't installed; run this .*\[geant4\]'$"):
        simulate(CALORIMETER, 1, **RUN)


def test_another_wheel(monkeypatch):
    monkeypatch.setattr(datafree.metadata, "version", lambda name: "0.1.2")
    wanted = r"^Simulating without data sets needs geant4_pybind 0.1.3 on Linux x86_64, but this is 0.1.2 .*install"
    with pytest.raises(ItwinError, match=wanted):
        simulate(CALORIMETER, 1, **RUN)


def test_another_machine(monkeypatch):
    monkeypatch.setattr(datafree.platform, "machine", lambda: "arm64")
    with pytest.raises(ItwinError, match="on Linux arm64: install"):
        simulate(CALORIMETER, 1, **RUN)


def test_a_wheel_that_lacks_a_function():
    library = ctypes.CDLL(find_spec("geant4_pybind").origin)
    for symbol in datafree.SYMBOLS:
        assert hasattr(library, symbol)
    with pytest.raises(ItwinError, match=r"^This build of geant4_pybind doesn't export _ZN3NoneC1Ev.*: install"):
        datafree.probe(library, (*datafree.SYMBOLS, "_ZN3NoneC1Ev"))


def test_a_wheel_that_cannot_be_loaded(tmp_path, monkeypatch):
    """What a worker finds wrong reaches the user as it is."""
    (tmp_path / "geant4_pybind.py").write_text("raise ImportError('GLIBC_2.99 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ItwinError, match=r"^geant4_pybind can't be loaded \(GLIBC_2.99 not found\): install it"):
        simulate(CALORIMETER, 1, **RUN)


# what dies


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGABRT])
def test_a_killed_worker_is_one_sentence_and_the_run_goes_on_from_its_blocks(tmp_path, blow, thousand):
    blocks, out = tmp_path / "blocks", tmp_path / "out.npy"
    job = subprocess.Popen(command(1000, 0.2, 2, blocks, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(blocks.glob("block-*.npz"))) >= 2, job)
    workers = wait_for(lambda: children(job.pid))
    workers[0].send_signal(blow)
    _, said = job.communicate(timeout=LONG)
    assert job.returncode == 1 and not out.exists()
    assert said.startswith(f"ItwinError: A Geant4 worker died ({blow.name}") and said.count("\n") == 1, said
    assert f"run it again with blocks='{blocks}'" in said
    assert not [worker for worker in workers if worker.is_running()]
    finished = {path: path.stat().st_mtime_ns for path in blocks.glob("block-*.npz")}
    assert run(1000, 0.2, 1, blocks, out).stdout == "DONE\n"
    assert all(path.stat().st_mtime_ns == made for path, made in finished.items())
    assert np.array_equal(np.load(out), thousand)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_killed_half_way_leaves_no_worker_and_goes_on_to_the_same_result(tmp_path, blow, thousand):
    blocks, out = tmp_path / "blocks", tmp_path / "out.npy"
    job = subprocess.Popen(command(1000, 0.2, 2, blocks, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(blocks.glob("block-*.npz"))) >= 3, job)
    workers = wait_for(lambda: children(job.pid))
    job.send_signal(blow)
    job.communicate(timeout=LONG)
    assert job.returncode and not out.exists()
    wait_for(lambda: not [worker for worker in workers if worker.is_running()], seconds=10)
    finished = len(list(blocks.glob("block-*.npz")))
    assert 3 <= finished and not list(blocks.glob(".*"))
    assert run(1000, 0.2, 1, blocks, out).stdout == "DONE\n"
    assert np.array_equal(np.load(out), thousand)


def test_a_loop_that_is_left_leaves_no_worker():
    before = {worker.pid for worker in geant4_workers()}
    blocks = simulate_blocks(CALORIMETER, 1000, workers=2, **RUN)
    next(blocks)
    mine = {worker.pid for worker in children(os.getpid())} - before
    assert len(mine) == 2
    blocks.close()
    assert not mine & {worker.pid for worker in children(os.getpid())}


def test_a_worker_leaves_no_folder(tmp_path):
    done = run(5, 0.2, 2, "", tmp_path / "out.npy", env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.stdout == "DONE\n" and [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_geant4_says_why_it_aborts(tmp_path):
    """A physics list without its data sets ends the process; the sentence says what Geant4 missed."""
    for variable, prefix in datafree._DATA_SETS.items():
        (tmp_path / f"{prefix}1").mkdir()
    (tmp_path / "G4ENSDFSTATE1" / "ENSDFSTATE.dat").touch()
    environment = {n: v for n, v in os.environ.items() if n not in datafree._DATA_SETS}
    done = run(1, 0.2, 1, "", tmp_path / "out.npy", env=environment | {"GEANT4_DATA_DIR": str(tmp_path)})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ItwinError: A Geant4 worker died (SIG") and ": run it again" in done.stderr
    assert "G4" in done.stderr.split("(")[1].split(")")[0], done.stderr


# blocks


def test_damaged_and_foreign_blocks(tmp_path):
    simulate(CALORIMETER, 150, blocks=tmp_path, **RUN)
    with pytest.raises(ItwinError, match="blocks of another simulation: choose another folder"):
        simulate(CALORIMETER, 150, blocks=tmp_path, **RUN | {"seed": 6})
    block = next(tmp_path.glob("block-*.npz"))
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"is damaged: delete it"):
        simulate(CALORIMETER, 150, blocks=tmp_path, **RUN)
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(InputError, match="isn't a JSON file"):
        simulate(CALORIMETER, 150, blocks=tmp_path, **RUN)


def test_blocks_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ItwinError, match="^Cannot write .*choose another path"):
        simulate(CALORIMETER, 1, blocks=tmp_path / "file" / "blocks", **RUN)


def test_the_record_of_a_run_is_the_same_again(tmp_path):
    once, again = (simulate(CALORIMETER, 20, blocks=tmp_path / name, **RUN) for name in "ab")
    assert once.drop_attrs().identical(again.drop_attrs())
    assert {k: v for k, v in once.attrs.items() if k != "cpu_seconds"} == {
        k: v for k, v in again.attrs.items() if k != "cpu_seconds"
    }
    assert Calorimeter(**json.loads(once.attrs["calorimeter"])) == CALORIMETER


# many workers


def test_the_number_of_workers_changes_nothing(tmp_path, thousand):
    shares = simulate(CALORIMETER, 1000, workers=3, blocks=tmp_path, **RUN)
    assert np.array_equal(shares.ECAL.values, thousand)
    first = simulate(CALORIMETER, 400, **RUN)
    assert np.array_equal(first.ECAL.values, thousand[:400])


def test_a_cluster_changes_nothing(thousand):
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        data = simulate(CALORIMETER, 1000, cluster=client, **RUN)
        with pytest.raises(ItwinError, match="no particle"):
            simulate(CALORIMETER, 1, particle="electron", cluster=client, **RUN)
    assert np.array_equal(data.ECAL.values, thousand)
