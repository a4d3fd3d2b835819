"""Check the scalar lattice twin against exact and published values, and against the goals of its design."""

import math

import pytest

from itwin_nb.lattice import HMC, Flow, Phi4, TrainConfig, measure, pretrained, sample, train

SAMPLES = 32768
TUTORIAL = Phi4(m2=-4.0, lam=8.0)
INTERTWIN = Phi4.from_komijani(kappa=0.67, m_sq=-4 * 0.67, lam=0.5)
CRITICAL = Phi4(m2=-4.0, lam=4.572)  # L=32: Gerdes et al., arXiv:2207.00283


def agree(estimate, value, error=0.0, sigmas=3.0):
    return abs(estimate.value - value) < sigmas * math.hypot(estimate.error, error)


def train_and_sample(action, shape=(8, 8), **config):
    flow = Flow(shape)
    loop = train(flow, action, TrainConfig(**config))
    return flow, loop, sample(flow, action, SAMPLES, seed=11)


@pytest.fixture(scope="module")
def tutorial():
    """Train for the theory of arXiv:2101.08176, as `itwin run lattice_flow -p lam 8` does."""
    return train_and_sample(TUTORIAL)


@pytest.mark.slow
def test_tutorial_point_is_learned_in_120_cpu_seconds(tutorial):
    _, loop, chain = tutorial
    assert loop.cpu_seconds < 120
    assert chain.attrs["acceptance"] > 0.80
    assert agree(measure(chain.phi, TUTORIAL)["chi2"], 0.7435, 0.0027)


@pytest.mark.slow
def test_hmc_finds_the_published_susceptibility():
    ensemble = HMC(TUTORIAL, (8, 8), chains=128, steps=8).run(2000, seed=12)
    observables = measure(ensemble.phi, TUTORIAL)
    assert observables["chi2"].error < 0.004
    assert agree(observables["chi2"], 0.7435, 0.0027)


@pytest.mark.slow
def test_larger_volumes_without_retraining(tutorial):
    flow, _, _ = tutorial
    acceptance = {L: sample(flow.resize((L, L)), TUTORIAL, 16384, seed=L).attrs["acceptance"] for L in (16, 32)}
    assert acceptance[16] > 0.60
    assert acceptance[32] > 0.50


@pytest.mark.slow
def test_intertwin_point_where_hmc_slows_down():
    _, loop, chain = train_and_sample(INTERTWIN)
    assert loop.cpu_seconds < 150
    assert chain.attrs["acceptance"] > 0.65
    of_flow = measure(chain.phi, INTERTWIN)
    assert of_flow["m"].tau < 3
    assert agree(of_flow["chi2"], 9.430 / INTERTWIN.kinetic, 0.039 / INTERTWIN.kinetic)

    ensemble = HMC(INTERTWIN, (8, 8), chains=128, steps=8).run(2000, seed=13, every=2, thermalise=1000)
    of_hmc = measure(ensemble.phi, INTERTWIN)
    assert 2 * of_hmc["m"].tau > 30
    assert agree(of_hmc["chi2"], of_flow["chi2"].value, of_flow["chi2"].error)


@pytest.mark.slow
def test_shipped_flow_on_the_critical_line():
    flow = pretrained("phi4-critical-32")
    chain = sample(flow, CRITICAL, 16384, seed=14)
    assert chain.attrs["ess"] > 0.5
    assert chain.attrs["largest_weight"] < 0.01
    assert chain.attrs["integration_error"] < 0.01
