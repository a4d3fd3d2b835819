"""Check that the metrics of the detector catch faults: each fault's own metric must be far outside its floor."""

import numpy as np
import pytest

from itwin_nb.detector.geant4 import simulate
from itwin_nb.detector.geometry import Calorimeter
from itwin_nb.detector.observables import observe
from itwin_nb.detector.validation import validate

EVENTS = 300
FAR = 4  # errors between value and floor


@pytest.fixture(scope="module")
def samples():
    """Three independent sets of Geant4: test, reference and floor."""
    calorimeter = Calorimeter.preset("clic51")
    showers = simulate(calorimeter, 3 * EVENTS, energy=(2, 8), theta=(60, 120), seed=11, workers=2)
    parts = [showers.isel(event=slice(n * EVENTS, (n + 1) * EVENTS)) for n in range(3)]
    return parts[0], observe(parts[1]), observe(parts[2])


def brighter(cells, energy, rng):
    return 1.05 * cells


def shuffled_layers(cells, energy, rng):
    """Put the layers of all showers in another order."""
    return cells[..., rng.permutation(cells.shape[3])]


def layers_in_any_order(cells, energy, rng):
    """Put the layers of each shower in an order of its own."""
    order = rng.permuted(np.tile(np.arange(cells.shape[3]), (len(cells), 1)), axis=1)
    return np.take_along_axis(cells, order[:, None, None, :], axis=3)


def mixed_layers(cells, energy, rng):
    """Take each layer from another shower of about the same energy: only correlations are wrong."""
    near, mixed = np.argsort(energy).reshape(-1, 10), np.empty_like(cells)
    for layer in range(cells.shape[3]):
        mixed[near.ravel(), :, :, layer] = cells[rng.permuted(near, axis=1).ravel(), :, :, layer]
    return mixed


def one_shower(cells, energy, rng):
    """Repeat one shower, scaled to each energy."""
    return cells[:1] * (energy / energy[0])[:, None, None, None]


def few_showers(cells, energy, rng):
    """Repeat twenty showers: what a generator does that learned its training set by heart."""
    total = cells.sum(axis=(1, 2, 3))
    known = rng.integers(20, size=len(cells))
    return cells[known] * (total / total[known])[:, None, None, None]


def mean_image(cells, energy, rng):
    scale = energy[:, None, None, None].astype(np.float32)
    return (cells / scale).mean(axis=0) * scale


def ignored_angle(cells, energy, rng):
    """Give the showers, in the order of their energies, to others of about the same energy and any angle."""
    near, made = np.argsort(energy).reshape(-1, 10), np.empty_like(cells)
    made[near.ravel()] = cells[rng.permuted(near, axis=1).ravel()]
    return made


def ignored_energy(cells, energy, rng):
    return cells[rng.permutation(len(cells))]


def ignored_energy_scaled(cells, energy, rng):
    """Draw showers of any energy and scale them: the response is right, the shape that of another energy."""
    other = rng.permutation(len(cells))
    return cells[other] * (energy / energy[other])[:, None, None, None]


def swapped_axes(cells, energy, rng):
    return cells.swapaxes(1, 2)


def moved(cells, energy, rng):
    """Move all showers by one cell along x."""
    return np.roll(cells, 1, axis=1)


FAULTS = {
    brighter: ["response"],
    shuffled_layers: ["longitudinal", "depth", "separation_layers", "auc"],
    layers_in_any_order: ["longitudinal", "length", "auc"],
    mixed_layers: ["auc", "frechet"],
    one_shower: ["variety", "resolution", "auc"],
    few_showers: ["variety"],
    mean_image: ["variety", "resolution", "cell_spectrum", "separation_layers", "auc"],
    ignored_angle: ["angle", "centre_y", "radial", "auc"],
    ignored_energy: ["response_energy", "hits_energy", "auc"],
    ignored_energy_scaled: ["hits_energy", "auc"],
    swapped_axes: ["angle", "centre_x", "auc"],
    moved: ["centre_x", "radial", "auc"],
}


def outside(metric):
    """Count errors between value and floor."""
    return abs(metric["value"] - metric["floor"]) / metric["error"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_caught(samples, fault):
    test, reference, floor = samples
    cells = fault(test["ECAL"].values, test["energy"].values, np.random.default_rng(5))
    metrics = validate(test.assign(ECAL=(test["ECAL"].dims, cells)), reference, floor).metrics
    missed = {name: metrics[name] for name in FAULTS[fault] if outside(metrics[name]) < FAR}
    assert not missed


def test_geant4_passes(samples):
    metrics = validate(*samples).metrics
    caught = {name: m for name, m in metrics.items() if outside(m) > FAR}
    assert not caught
    assert metrics["auc"]["value"] < 0.56
