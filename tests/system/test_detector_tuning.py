"""Run detector_tuning as a user does: killed in the middle, resumed, and its champion used by the simulation."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ITWIN = Path(sys.executable).with_name("itwin")
SMALL = dict(trials=3, steps=28, seconds=3600, energy_high=5.0)


@pytest.fixture(scope="module")
def showers(tmp_path_factory):
    from itwin_nb.detector import Calorimeter, simulate, to_root

    made = simulate(Calorimeter.preset("clic51"), 150, energy=(1.0, 5.0), theta=(60.0, 120.0), seed=1, workers=2)
    return to_root(made, tmp_path_factory.mktemp("showers") / "showers.root")


def begin(showers, out, *options):
    words = [word for name, value in {"showers": showers, **SMALL}.items() for word in ("-p", name, str(value))]
    command = [ITWIN, "run", "detector_tuning", *words, "--out", out, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def results(out):
    found = json.loads((out / "results.json").read_text())
    return {name: entry["value"] for name, entry in found.items() if name != "seconds_trials"}


@pytest.mark.slow
def test_a_killed_search_is_resumed_and_its_champion_simulates(showers, tmp_path):
    whole, cut = begin(showers, tmp_path / "whole"), begin(showers, tmp_path / "cut")
    while not (tmp_path / "cut" / "search" / "trial-001.pt").exists():
        assert cut.poll() is None, cut.communicate()[0]
        time.sleep(0.2)
    os.killpg(cut.pid, signal.SIGKILL)
    assert whole.wait() == 0, whole.communicate()[0]
    resumed = begin(showers, tmp_path / "cut", "--resume")
    assert resumed.wait() == 0, resumed.communicate()[0]
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert results(tmp_path / "cut")["distance_best"] <= results(tmp_path / "cut")["distance_default"]

    from itwin_nb.detector.inference import Generator
    from itwin_nb.learn.track import find_registered

    generator = Generator.load(find_registered("clic51", uri=tmp_path / "cut" / "mlflow.db"))
    assert (generator.generate([2.0], [1.5]).sum(axis=(1, 2, 3)) > 0).all()
    assert not generator.scope.accepts(11, [20.0], [1.5]).any()
