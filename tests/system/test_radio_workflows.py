"""Run radio_classify and radio_train as a user does, and compare what they leave with the same done by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from itwin_nb.radio import Observation, Pulsar, Telescope, classify, open_observation, pretrained, simulate
from itwin_nb.radio.stream import read_labels

ITWIN = Path(sys.executable).with_name("itwin")
SMALL = dict(steps=48, batch=32, width=8, validation=4096, test=2048, others=2048)


def itwin_run(workflow, out, *options, **parameters):
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    return subprocess.run([ITWIN, "run", workflow, *words, "--out", out, *options], capture_output=True, text=True)


def results(out):
    return {name: entry["value"] for name, entry in json.loads((out / "results.json").read_text()).items()}


@pytest.fixture(scope="module")
def crab(tmp_path_factory):
    observation = Observation(Telescope.preset("Effelsberg_7beam"), (Pulsar.catalogue("Crab"),), duration_s=20.0, seed=3)
    return simulate(observation).write(tmp_path_factory.mktemp("crab") / "crab.fil")


def test_radio_classify(crab, tmp_path):
    run = itwin_run("radio_classify", tmp_path / "run", path=crab, dm=56.77)
    assert run.returncode == 0, run.stderr
    labels, found = read_labels(tmp_path / "run" / "labels.csv"), results(tmp_path / "run")
    pd.testing.assert_frame_equal(labels, classify(crab, 56.77), check_exact=True)
    assert found["fragments"] == len(labels) == 762
    truth = pd.read_csv(crab.with_suffix(".truth.csv"), keep_default_na=False)
    bright, pulses = truth.snr_pulse[:762] > 10, labels.label.str.contains("Pulse")
    assert bright.sum() > 5 and (pulses & bright).sum() >= 0.9 * bright.sum()
    pieces = pd.read_csv(tmp_path / "run" / "kept" / "pieces.csv")
    starts = labels.start_s[pulses].to_numpy()[:, None]
    assert np.all(np.any((pieces.start_s.to_numpy() <= starts) & (starts < pieces.end_s.to_numpy()), axis=1))
    assert found["pieces"] == len(pieces) and 0 < found["kept"] < 1
    first = open_observation(tmp_path / "run" / "kept" / pieces.file[0])
    start = round(pieces.start_s[0] / first.header.tsamp_s)
    assert np.array_equal(first.read(0, 500), open_observation(crab).read(start, 500))


@pytest.mark.parametrize("parameters", [dict(dm=56.77), dict(path="nowhere.fil", dm=56.77), dict(path="nowhere.fil")])
def test_radio_classify_refuses(tmp_path, parameters):
    run = itwin_run("radio_classify", tmp_path / "run", **parameters)
    assert run.returncode in (1, 2)
    message = run.stderr.strip().splitlines()[-1]
    assert ("nowhere.fil" if len(parameters) == 2 else "radio_classify needs a file") in message


@pytest.mark.slow
@pytest.mark.slurm
def test_radio_train_on_slurm(tmp_path):
    """Two workers share the scenes; the model that is left labels, and each stream has its figures."""
    run = itwin_run("radio_train", tmp_path / "run", "--on", "test", workers=2, **SMALL)
    assert run.returncode == 0, run.stderr
    found = results(tmp_path / "run")
    assert {"pulse_recall", "pulse_recall_unknown_interference", "pulse_recall_larger_dm"} <= set(found)
    assert found["fragments"] == 2048 and found["accuracy_8_classes"] > 0.3
    labeller = pretrained(tmp_path / "run" / "model")
    assert labeller.prevalence == {"pulse": 0.01, "nbrfi": 0.2, "bbrfi": 0.2}
    assert sum(p.numel() for p in labeller.classifier.parameters()) < 10_000
