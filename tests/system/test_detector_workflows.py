"""Run detector_fullsim, detector_gan and detector_fastsim one after the other, as a user does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from itwin_nb.detector import Generator, read_showers

ITWIN = Path(sys.executable).with_name("itwin")
BEAM = dict(energy_low=1.0, energy_high=4.0)


def itwin_run(workflow, out, **parameters):
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    return subprocess.run([ITWIN, "run", workflow, *words, "--out", out], capture_output=True, text=True)


def results(out):
    return {name: entry["value"] for name, entry in json.loads((out / "results.json").read_text()).items()}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    out = tmp_path_factory.mktemp("full") / "run"
    run = itwin_run("detector_fullsim", out, n=200, seed=1, **BEAM)
    assert run.returncode == 0, run.stderr
    return out


def test_showers_become_a_generator_that_runs_in_geant4(full, tmp_path):
    short = dict(steps=40, likelihood=30, test=100)
    run = itwin_run("detector_gan", tmp_path / "gan", showers=full / "showers.root", **short, **BEAM)
    assert run.returncode == 0, run.stderr
    found, model = results(tmp_path / "gan"), Generator.load(tmp_path / "gan" / "model")
    assert model.scope.energy_gev == (1.0, 4.0) and abs(found["response"] - 1) < 0.1
    assert found["auc"] > found["auc_floor"]  # after forty steps
    (origin,) = json.loads((tmp_path / "gan" / "provenance.json").read_text())["inputs"]
    assert origin == str(full / "showers.root")
    run = itwin_run("detector_fastsim", tmp_path / "fast", model=tmp_path / "gan" / "model", n=50, **BEAM)
    assert run.returncode == 0, run.stderr
    fast = read_showers(next((tmp_path / "fast").glob("*.h5")))
    visible = fast.ECAL.sum(("x", "y", "z")).values / 1000 / fast.energy.values
    assert abs(np.mean(visible) / results(full)["visible_fraction"] - 1) < 0.15


def test_showers_of_another_calorimeter_are_refused(full, tmp_path):
    run = itwin_run("detector_gan", tmp_path / "gan", showers=full / "showers.root", calorimeter="clic25", **BEAM)
    assert run.returncode == 2 and "comes from another calorimeter" in run.stderr.strip().splitlines()[-1]
