"""A generator inside Geant4's event loop: without PyTorch, with damaged or wrong models, beyond its scope, with killed workers; the record that it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import uproot

from itwin_nb.compute.workflow import find_workflow
from itwin_nb.core.errors import InputError, ItwinError, UsageError
from itwin_nb.detector.comparison import Request, advise
from itwin_nb.detector.fastsim import simulate_fast
from itwin_nb.detector.geant4 import beam, simulate
from itwin_nb.detector.geometry import Calorimeter
from itwin_nb.detector.inference import Generator, Scope, save_generator
from itwin_nb.detector.showers import read_showers, to_root

ITWIN = Path(sys.executable).with_name("itwin")
LONG = 240  # s, for what takes some on an idle machine
CALORIMETER = Calorimeter.preset("clic25")
FAST = {"engine": "fast", "seed": 5, "progress": False}
SCRIPT = """
import sys
import numpy as np
from itwin_nb.core.errors import ItwinError
from itwin_nb.detector.geant4 import simulate
from itwin_nb.detector.geometry import Calorimeter

try:
    data = simulate(Calorimeter.preset("clic25"), int(sys.argv[2]), energy=float(sys.argv[4]), seed=5, engine="fast", model=sys.argv[1],
                    workers=2, progress=False)
except ItwinError as error:
    sys.exit(f"{type(error).__name__}: {error}")
np.save(sys.argv[3], data.ECAL.values)
print("torch" in sys.modules)
"""


class Toy(torch.nn.Module):
    """A formula in the shape of a trained generator, with energies of the right size."""

    config, noise_size = {}, 26

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(20.0))
        self.register_buffer("x", torch.tensor(CALORIMETER.cells_mm, dtype=torch.float32))
        self.register_buffer("z", torch.tensor(CALORIMETER.depths_mm, dtype=torch.float32))

    def forward(self, energy, theta, photon, noise):
        rise = 2.2 + 0.5 * torch.log(energy) + 0.25 * photon
        layers = torch.exp(rise * torch.log(self.z) - self.z / 10.2) * (1 + 0.2 * noise[:, 1:])
        layers = layers / layers.sum(1, keepdim=True) * energy * self.scale * (1 + 0.05 * noise[:, :1])
        off = self.x[None, :, None] - (torch.cos(theta) / torch.sin(theta) * self.z)[:, None]
        image = torch.exp(-(self.x**2) / 60)[:, None, None] * torch.exp(-(off**2) / 60)[:, None]
        return torch.relu(image * layers[:, None, None] / 8 - 0.05).flatten(1)


def save(folder, scope=Scope((1, 50), (60, 120))):
    return save_generator(folder, Toy().eval(), CALORIMETER, scope, {}, "A formula.")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Environment in which PyTorch can't be imported, neither here nor by workers."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')")
    return os.environ | {"PYTHONPATH": str(folder)}


def script(model, n, out, energy=10.0):
    return [sys.executable, "-c", SCRIPT, str(model), str(n), str(out), str(energy)]


# without PyTorch


def test_without_torch(model, without_torch, tmp_path):
    assert subprocess.run([sys.executable, "-c", "import torch"], env=without_torch, capture_output=True).returncode
    done = subprocess.run(script(model, 30, tmp_path / "out.npy"), env=without_torch, capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    expected = simulate(CALORIMETER, 30, energy=10.0, model=model, **FAST).ECAL.values
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_workflow_without_torch(model, without_torch, tmp_path):
    words = ["-p", "model", model, "-p", "calorimeter", "clic25", "-p", "n", "30", "--out", tmp_path / "run"]
    done = subprocess.run([ITWIN, "run", "detector_fastsim", *words], env=without_torch, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    assert read_showers(tmp_path / "run" / "showers.root").sizes["event"] == 30
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["taken_over"]["value"] == pytest.approx(1) and results["cpu_per_event"]["value"] > 0


# models that are missing, damaged or of something else


def test_no_model():
    with pytest.raises(InputError, match=r"^There is no trained model nowhere: give a model folder"):
        simulate(CALORIMETER, 1, model="nowhere", **FAST)
    with pytest.raises(UsageError, match=r"^A generator is needed: give model"):
        simulate(CALORIMETER, 1, **FAST)


@pytest.mark.parametrize("engine", ["fast", "gan"])
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.onnx", lambda file: file.unlink(), "has no model.onnx: save it"),
        ("model.onnx", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), "model.onnx is damaged"),
        ("model.onnx", lambda file: file.write_bytes(b""), "model.onnx is damaged"),
        ("config.json", lambda file: file.unlink(), "There is no file .*config.json"),
        ("config.json", lambda file: file.write_text('{"scope": {}}'), "doesn't describe a generator"),
    ],
)
def test_damaged_models(tmp_path, engine, name, damage, said):
    folder = save(tmp_path / "toy")
    damage(folder / name)
    with pytest.raises(InputError, match=said) as raised:
        simulate(CALORIMETER, 1, model=folder, **FAST | {"engine": engine})
    assert "\n" not in str(raised.value)


def test_wrong_calorimeters(model):
    with pytest.raises(InputError, match=r"learned another calorimeter \(absorber_mm 3.5, not 3.4\): choose another"):
        simulate(replace(CALORIMETER, absorber_mm=3.4), 1, model=model, **FAST)
    with pytest.raises(InputError, match=r"cells 25, not 51"):
        simulate(Calorimeter.preset("clic51"), 1, model=model, **FAST)


# beyond the scope


def test_what_was_not_learned_stays_in_full_simulation(model):
    """Bit by bit the events of Geant4, particle by particle."""
    energy, theta = np.array([0.99, 50.1, 10, 10, 2.0]), np.array([90, 90, 59.8, 120.2, 90])
    particle = np.array(["e-", "e-", "e-", "e-", "gamma"])
    job = dict(particle=particle, energy=energy, theta=theta)
    fast = simulate(CALORIMETER, 5, **job, model=model, **FAST)
    assert not fast.showers.any() and not fast.fast.any() and not fast.taken.any()
    full = simulate(CALORIMETER, 5, **job, **FAST | {"engine": "geant4"})
    assert np.array_equal(fast.ECAL, full.ECAL) and fast.ECAL.sum() > 0


def test_the_edges_are_taken_over(model):
    """A particle that was shot at an edge is a little beyond it at the face, after a millimetre of air."""
    energy, theta = np.tile([1.0, 50.0, 10.0, 10.0], 10), np.tile([90.0, 90.0, 60.0, 120.0], 10)
    assert (simulate(CALORIMETER, 40, energy=energy, theta=theta, model=model, **FAST).showers == 1).all()


def test_threshold(model):
    shot = beam(4, energy=np.array([1.5, 2.9, 3.1, 4.0]))
    data = simulate_fast(CALORIMETER, shot, seed=5, model=model, threshold_gev=3.0, progress=False)
    assert data.showers.values.tolist() == [0, 0, 1, 1]
    assert (data.ECAL.sum(("x", "y", "z")) > 0).all()


# the record


def test_the_record_is_the_same_for_full_and_fast(model, tmp_path):
    before, job = replace(CALORIMETER, upstream_mm=5.0), dict(energy=20.0, seed=5, progress=False)
    data = {name: simulate(before, 60, **job, **engine) for name, engine in (("full", {}), ("fast", dict(engine="fast", model=model)))}
    trees = {}
    for name, showers in data.items():
        to_root(showers, tmp_path / f"{name}.root")
        with uproot.open(tmp_path / f"{name}.root") as file:
            trees[name] = file[next(key for key in file.keys() if file[key].classname.startswith("TTree"))].arrays()
    hits = [field for field in trees["full"].fields if field.startswith("ECalHits")]
    assert hits == [field for field in trees["fast"].fields if field.startswith("ECalHits")] and len(hits) > 4
    for field in hits:
        assert str(trees["full"][field].type.content) == str(trees["fast"][field].type.content)
    flags = {name: np.concatenate([np.asarray(event) for event in tree["ECalHits.fast"]]) for name, tree in trees.items()}
    assert not flags["full"].any() and set(flags["fast"]) == {0, 1}
    again = read_showers(tmp_path / "fast.root")
    assert np.array_equal(again.ECAL, data["fast"].ECAL) and np.array_equal(again.fast, data["fast"].fast)


def test_energy_is_conserved(model, tmp_path):
    """What arrives is taken over whole; what the generator made lies on the cells, or is said to be lost."""
    data = simulate(CALORIMETER, 80, energy=(1, 50), theta=(60, 120), model=model, **FAST)
    assert np.allclose(data.taken, data.energy, rtol=1e-6)
    keys = np.stack([np.full(80, 5), np.arange(80), np.zeros(80, int)], axis=1)
    images = Generator.load(model).generate(data.energy.values, data.theta.values, seed=keys)
    sums = data.ECAL.sum(("x", "y", "z")) + data.lost
    assert np.allclose(sums, images.sum((1, 2, 3)), rtol=1e-4)
    greedy = save(tmp_path / "greedy", Scope((1e-3, 50), (30, 150), ("e-", "e+", "gamma")))
    behind = simulate(replace(CALORIMETER, upstream_mm=5.0), 200, energy=20.0, model=greedy, **FAST)
    ionisation = 5.0 * 0.5e-3 / 20  # share of the energy that electrons of 20 GeV leave in the plate, about
    share = behind.taken / behind.energy
    assert (share <= 1).all() and 0 < 1 - share.median() < 3 * ionisation and 1 - share.mean() < 0.005
    assert behind.showers.max() > 3


def test_the_number_of_workers_changes_nothing(model):
    before, job = replace(CALORIMETER, upstream_mm=5.0), dict(energy=(0.5, 20), theta=(60, 120), model=model, **FAST)
    one, three = (simulate(before, 300, **job, workers=workers) for workers in (1, 3))
    assert one.drop_attrs().identical(three.drop_attrs())
    assert not np.array_equal(one.ECAL, simulate(before, 300, **job | {"seed": 6}).ECAL)


# what dies


def children(pid):
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            found += [process] if "_serve" in " ".join(process.cmdline()) else []
    return found


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_one_sentence(model, tmp_path, blow):
    """Electrons of 60 GeV stay in full simulation, so the workers are busy for long."""
    job = subprocess.Popen(script(model, 1000, tmp_path / "out.npy", 60.0), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(workers := children(job.pid)) < 2:
        assert time.monotonic() < end and job.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    workers[0].send_signal(blow)
    _, said = job.communicate(timeout=LONG)
    assert job.returncode == 1 and not (tmp_path / "out.npy").exists()
    assert said.startswith(f"ItwinError: A Geant4 worker died ({blow.name}") and said.count("\n") == 1, said
    assert not [worker for worker in workers if worker.is_running()]


def test_a_worker_finds_the_model_gone(model, tmp_path, monkeypatch):
    """The model is read again by each worker; what is wrong there reaches the user as it is."""
    folder = save(tmp_path / "toy")
    generator = Generator.load(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(ItwinError, match="has no model.onnx"):
        simulate(CALORIMETER, 1, model=generator, **FAST)


# the advice


def test_an_advice_names_what_workflows_take(model):
    generator = Generator.load(model)
    requests = Request(CALORIMETER, Scope((2, 3), (80, 100))), Request(replace(CALORIMETER, gap_mm=2.0, upstream_mm=3.0), Scope((2, 99), (80, 100)))
    for request in requests:
        for workflow, parameters in advise(request, generator).steps:
            known = find_workflow(workflow).parameters
            for name, value in parameters.items():
                known[name].fit(value)


def test_an_inner_loop_runs_as_it_stands(model, tmp_path):
    advice = advise(Request(replace(CALORIMETER, upstream_mm=5.0), Scope((2, 3), (80, 100)), n=20), Generator.load(model))
    environment = os.environ | {"PATH": f"{ITWIN.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([advice.write(tmp_path / "advice")], env=environment, capture_output=True, text=True, timeout=LONG, cwd="/")
    assert done.returncode == 0, done.stderr
    data = read_showers(tmp_path / "advice" / "fast" / "showers.root")
    assert data.sizes["event"] == 20 and json.loads(data.attrs["calorimeter"])["upstream_mm"] == 5.0
