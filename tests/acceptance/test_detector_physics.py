"""Full simulation of electromagnetic showers without data sets, against the literature.

Every error comes from the spread of the events. References: Navas et al. (PDG) 2024, PRD 110, 030001, ch. 34 "Passage of particles
through matter": a shower's mean profile is a Gamma distribution with its maximum at ln(E/Ec) - 0.5 (electrons) or + 0.5 (photons)
radiation lengths; Ec(W) = 7.97 MeV; a photon converts after 9/7 X0 on average.
"""

import math
from functools import cache

import numpy as np
import pytest
from scipy.optimize import curve_fit

from itwin_nb.detector.geant4 import EventLoop, beam, event_blocks, simulate
from itwin_nb.detector.geometry import RADIATION_LENGTHS_MM, Calorimeter

STEP = 0.5  # X0, of a layer of the tungsten block
CRITICAL_GEV = 7.97e-3
EVENTS = {1: 1000, 10: 200, 100: 200}  # by energy in GeV; a shower's own maximum fluctuates by about 1 X0
TARGET = "test_detector_physics:Bookkeeper"


@cache
def block():
    """A block of tungsten of 30 X0, all of it sensor, so wide and deep that little leaks."""
    thickness = STEP * RADIATION_LENGTHS_MM["G4_W"]
    cells = {"layers": 60, "cells": 1, "cell_mm": 1000.0}
    return Calorimeter("block", **cells, sensor="G4_W", absorber_mm=0.0, sensor_mm=thickness, gap_mm=0.0)


@cache
def showers(particle, energy):
    """Energy [event, layer] in MeV in the tungsten block."""
    data = simulate(block(), EVENTS[energy], particle, energy, seed=11, progress=False)
    return data.ECAL.values[:, 0, 0].astype(float)


def maximum(profile):
    """Depth in X0 at which a Gamma distribution that is fitted to a profile is largest."""
    depth = STEP * (np.arange(len(profile)) + 0.5)

    def gamma(t, a, b, t_max):
        return a * t ** (b * t_max) * np.exp(-b * t)

    return curve_fit(gamma, depth, profile / profile.sum(), p0=(0.01, 0.5, 6))[0][2]


@cache
def t_max(particle, energy):
    """Depth of the shower maximum in X0 and its error, from resampled events."""
    events, rng = showers(particle, energy), np.random.default_rng(1)
    again = [maximum(events[rng.integers(len(events), size=len(events))].mean(0)) for _ in range(60)]
    return maximum(events.mean(0)), np.std(again, ddof=1)


SLOW = pytest.mark.slow  # a minute


@pytest.mark.parametrize("energy", [1, 10, pytest.param(100, marks=SLOW)])
def test_electrons_reach_their_maximum_where_the_pdg_says(energy):
    depth, error = t_max("e-", energy)
    off = depth - (math.log(energy / CRITICAL_GEV) - 0.5)
    print(f"e- {energy} GeV: t_max {depth:.2f} X0, {off:+.2f} +- {error:.2f} from PDG")
    assert error < 0.2
    assert abs(off) <= 0.6


LATE = pytest.mark.xfail(
    strict=True,
    reason="a photon's shower is an electron's that starts 9/7 - 1/2 = 0.79 X0 later; the PDG's two constants say 1.0",
)


@pytest.mark.parametrize("energy", [pytest.param(1, marks=LATE), pytest.param(10, marks=LATE), pytest.param(100, marks=SLOW)])
def test_photons_reach_their_maximum_where_the_pdg_says(energy):
    depth, error = t_max("gamma", energy)
    off = depth - (math.log(energy / CRITICAL_GEV) + 0.5)
    print(f"gamma {energy} GeV: t_max {depth:.2f} X0, {off:+.2f} +- {error:.2f} from PDG")
    assert abs(off) <= 0.3


@pytest.mark.parametrize("energy", [1, 10])
def test_photons_shower_a_conversion_length_later_than_electrons(energy):
    """Electrons radiate their first hard photon after some 1/2 X0, photons convert after 9/7 X0."""
    (photon, photon_error), (electron, electron_error) = t_max("gamma", energy), t_max("e-", energy)
    error = math.hypot(photon_error, electron_error)
    print(f"{energy} GeV: gamma - e- {photon - electron:.2f} +- {error:.2f} X0")
    assert error < 0.15
    assert abs(photon - electron - (9 / 7 - 1 / 2)) < 3 * error


@pytest.mark.parametrize("particle", ["e-", "gamma"])
def test_the_maximum_moves_with_the_logarithm_of_the_energy(particle):
    (low, low_error), (high, high_error) = t_max(particle, 1), t_max(particle, 10)
    slope, error = (high - low) / math.log(10), math.hypot(low_error, high_error) / math.log(10)
    print(f"{particle}: {slope:.3f} +- {error:.3f} X0 per unit of ln E")
    assert abs(slope - 1) < 0.15


def test_a_block_contains_the_energy():
    for (particle, energy), least in {("e-", 1): 0.985, ("e-", 10): 0.985, ("gamma", 10): 0.985}.items():
        contained = showers(particle, energy).sum(1) / energy / 1e3
        print(f"{particle} {energy} GeV: {contained.mean():.4f} +- {contained.std() / len(contained) ** 0.5:.4f} contained")
        assert least < contained.mean() and contained.max() <= 1 + 1e-4


class Bookkeeper(EventLoop):
    """Add up what is deposited in all volumes and what leaves the world, in MeV."""

    def actions(self):
        loop, g4 = self, self.g4

        class Steps(g4.G4UserSteppingAction):
            def UserSteppingAction(self, step):  # noqa: N802
                loop.deposited += step.GetTotalEnergyDeposit()
                if step.GetPostStepPoint().GetStepStatus() == g4.fWorldBoundary:
                    track = step.GetTrack()
                    mass = 2 * g4.electron_mass_c2 if track.GetDefinition().GetPDGEncoding() == -11 else 0.0
                    loop.leaked += track.GetKineticEnergy() + mass

        return [*super().actions(), Steps()]

    def block(self, first, beam, seed):
        books = []
        for number, particle in enumerate(zip(*beam, strict=True), first):
            self.deposited = self.leaked = 0.0
            self.shoot(number, *particle, seed)
            books.append((self.deposited, self.leaked))
        return {"books": np.array(books)}


def test_energy_is_conserved():
    """What is deposited anywhere and what leaves the world is the energy of the beam, in each event."""
    shot = beam(20, "e-", (0.2, 2.0), (70, 110), seed=2)
    blocks = event_blocks(Calorimeter.preset("clic51"), shot, 2, target=TARGET, progress=False)
    books = np.concatenate([block["books"] for _, _, block in blocks])
    off = books.sum(1) / (1e3 * shot.energy) - 1
    print(f"deposited + leaked = beam within {np.abs(off).max():.0e}; leaked {(books[:, 1].sum() / books.sum()):.3f}")
    assert books[:, 0].min() > 0 and books[:, 1].max() > 0
    assert np.abs(off).max() < 1e-9


def test_two_percent_are_visible_and_a_gev_costs_at_most_20_ms():
    data = simulate(Calorimeter.preset("clic51"), 12, energy=100.0, seed=3, progress=False)
    visible = data.ECAL.sum(("x", "y", "z")).values / 1e5
    error, cost = visible.std(ddof=1) / 12**0.5, data.attrs["cpu_seconds"] / data.energy.values.sum()
    print(f"visible at 100 GeV: {visible.mean():.5f} +- {error:.5f}; {1e3 * cost:.1f} ms CPU per GeV")
    assert error < 0.0002
    assert abs(visible.mean() - 0.0202) < 0.0006  # 2.02 % in the 3DGAN's data
    assert cost <= 0.020


def test_resolution_falls_with_the_square_root_of_the_energy():
    """sigma / E = a E^-1/2, as a sampling calorimeter's; a is about 20 % for 1 X0 of tungsten per 0.5 mm of silicon."""
    events = {1: 300, 3: 200, 9: 100, 27: 40}
    widths, errors = [], []
    for energy, n in events.items():
        cells = simulate(Calorimeter.preset("clic25"), n, energy=energy, seed=4, progress=False).ECAL
        seen = cells.sum(("x", "y", "z")).values.astype(float)
        widths.append(seen.std(ddof=1) / seen.mean())
        kurtosis = ((seen - seen.mean()) ** 4).mean() / seen.var() ** 2
        errors.append(math.sqrt((kurtosis - 1) / (4 * n)))  # of the logarithm
    fit, covariance = np.polyfit(np.log(list(events)), np.log(widths), 1, w=1 / np.array(errors), cov="unscaled")
    exponent, error = fit[0], covariance[0, 0] ** 0.5
    print(f"resolution {math.exp(fit[1]):.3f} E^({exponent:.3f} +- {error:.3f})")
    assert error < 0.05
    assert abs(exponent + 0.5) < max(3 * error, 0.05)
    assert 0.16 < math.exp(fit[1]) < 0.23
