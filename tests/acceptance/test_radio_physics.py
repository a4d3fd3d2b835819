"""The physics of the radio twin, read back from its files: what a radio astronomer would measure in them.

`simulate(...).write(path)` writes a file; the few lines of `sigproc` below, or astropy, read it; formulas of the literature say
what has to come out. Tolerances are the project's goals. Each file is so long, and each source so bright, that the statistical
error stays below a third of them.

References: Dicke 1946, RSI 17, 268; Burn 1966, MNRAS 133, 67; Hankins & Rickett 1975, Meth. Comp. Phys. 14, 55; Hill 1975,
Ann. Stat. 3, 1163; Lawson et al. 1987, MNRAS 225, 307; Taylor 1992, Phil. Trans. R. Soc. A 341, 117; Cordes & Rickett 1998,
ApJ 507, 846; Bhat et al. 2004, ApJ 605, 759; Lorimer & Kramer 2005, Handbook of Pulsar Astronomy; Manchester et al. 2005,
AJ 129, 1993 (psrcat 1.54); Rankin et al. 2005, A&A 429, 999; Weltevrede et al. 2006, A&A 445, 243; Bietenholz et al. 1997,
ApJ 490, 291; Kong et al. 2008, ChJAA 8(3), doi:10.1088/1009-9271/8/3/05; Kulkarni 2020, arXiv:2007.02886.
"""

import math
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from scipy import optimize, special, stats

from itwin_nb.radio.ism import Medium
from itwin_nb.radio.source import Component, Nulling, Pulsar, Spin, Window
from itwin_nb.radio.synthesis import Observation, simulate
from itwin_nb.radio.telescope import Telescope

SEED = 1
DISPERSION = 1 / 2.41e-4  # s MHz^2 cm^3/pc, by convention (Kulkarni 2020)
FWHM = math.sqrt(8 * math.log(2))  # of a Gaussian with sigma 1
TEXTS, DOUBLES = {"source_name"}, {"src_raj", "src_dej", "az_start", "za_start", "fch1", "foff", "tstart", "tsamp"}


def sigproc(path):
    """Read a file by SIGPROC's definition: words with an integer, a double or a text each, then the samples."""
    with open(path, "rb") as file:

        def number(kind):
            return struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]

        def text():
            return file.read(number("i")).decode()

        assert text() == "HEADER_START"
        header = {}
        while (key := text()) != "HEADER_END":
            header[key] = text() if key in TEXTS else number("d" if key in DOUBLES else "i")
        raw = np.memmap(path, np.uint8, "r", file.tell())
    nbits, channels = header["nbits"], header["nchans"]
    if nbits < 8:
        raw = (raw[:, None] >> np.arange(0, 8, nbits, dtype=np.uint8)) & (2**nbits - 1)
    samples = raw if nbits <= 8 else raw.view({16: "<u2", 32: "<f4"}[nbits])
    mhz = header["fch1"] + header["foff"] * np.arange(channels)
    return SimpleNamespace(mhz=mhz, tsamp_s=header["tsamp"], mjd=header["tstart"], power=samples.reshape(-1, channels))


def observe(path, telescope, *sources, seconds, mjd=60000.0, seed=None):
    """Write what a telescope sees of some sources, and read it; the file goes when its samples, mapped to memory, do."""
    seed = SEED if seed is None else seed
    file = simulate(Observation(telescope, sources, (), seconds, mjd, seed)).write(path / "file.fil")
    seen = sigproc(file)
    file.unlink()  # pytest keeps the folders of three runs
    return seen


def receiver(mhz, step, channels, tsamp_s, sefd=20.0, **others):
    """Build a plain receiver from `mhz` downwards, with two polarisations; unquantised, if nothing else is asked for."""
    return Telescope("plain", "Effelsberg", "", mhz, -step, channels, tsamp_s, sefd, **{"nbits": 32, **others})


def pulsar(period_s=0.1, flux=0.1, index=0.0, width=0.05, **others):
    """Build a pulsar whose pulses are all the same: Gaussians that leave when its phase is zero."""
    return Pulsar("plain", Spin(1 / period_s), flux, index, 1400.0, (Component(0.0, width),), **others)


def delay_s(dm, mhz):
    return DISPERSION * dm / mhz**2


def centres_s(seen, count=None):
    """Middle of each sample, seconds since the beginning of the file."""
    return (np.arange(count or len(seen.power)) + 0.5) * seen.tsamp_s


def series(seen, dm, weights):
    """Sum the channels, each in units of its noise, as they arrive at infinite frequency."""
    shifts = np.rint(delay_s(dm, seen.mhz) / seen.tsamp_s).astype(int)
    total = np.zeros(len(seen.power) - shifts.max(), np.float32)
    for shift, weight, power in zip(shifts, weights, np.ascontiguousarray(seen.power.T)):
        total += weight / power.std() * power[shift : shift + len(total)]
    return total


def folded(power, turns, bins=128):
    """Mean of the samples whose phase is in a bin [bin, ...]; the middle of the first bin is phase 1/2 bins."""
    where = np.floor(np.remainder(turns, 1) * bins).astype(int)
    order = np.argsort(where, kind="stable")
    ends = np.searchsorted(where[order], np.arange(bins))
    count = np.bincount(where, minlength=bins).reshape(-1, *[1] * (power.ndim - 1))
    return np.add.reduceat(power[order], ends, axis=0, dtype=np.float64) / count


def phase(profile, width):
    """Find where in a profile a Gaussian is, in turns between -1/2 and 1/2 (Taylor 1992)."""
    n = np.arange(1, len(profile) // 2)
    place = np.exp(-2j * np.pi * np.outer(n, (np.arange(len(profile)) + 0.5) / len(profile)))
    harmonics = np.exp(-2 * (np.pi * n * width / FWHM) ** 2) * (place @ profile)

    def mismatch(x):
        return -(harmonics @ np.exp(2j * np.pi * n * x)).real

    start = min(np.arange(-0.5, 0.5, 0.005), key=mismatch)
    return optimize.minimize_scalar(mismatch, (start - 0.005, start + 0.005)).x


# When pulses come


CRAB_MJD, CRAB_DM, CRAB_WIDTH = 59000.48386574, 56.791, 0.03  # the observation of ML-PPA


@pytest.fixture(scope="module")
def crab(tmp_path_factory):
    """Write ten seconds of the Crab pulsar in Effelsberg's 7-beam receiver, bright and with a plain profile.

    Spin, dispersion, scattering, scintillation and nebula are the catalogue's, and all that the receiver does is on.
    """
    plain = {"flux_jy": 1.5, "components": (Component(0.0, CRAB_WIDTH),), "modulation": 0.0, "jitter": 0.0, "giants": None}
    source, telescope = replace(Pulsar.catalogue("Crab"), **plain), Telescope.preset("Effelsberg_7beam")
    return observe(tmp_path_factory.mktemp("crab"), telescope, source, seconds=10.0, mjd=CRAB_MJD)


def crab_turns(seconds):
    """Count turns since MJD 48442.5 by psrcat's ephemeris (Lyne et al. 2015), some time after CRAB_MJD; and Hz."""
    t = (np.longdouble(CRAB_MJD) - 48442.5) * 86400 + seconds
    f0, f1, f2 = 29.946923, -3.77535e-10, 1.1147e-20
    return t * (f0 + t * (f1 / 2 + t * f2 / 6)), float(f0 + t * (f1 + t * f2 / 2))


def arrivals(total, times, trial_hz, width, pieces):
    """Fold the pieces of a series: middle of each, and turns by then, counted by a trial frequency that is close enough."""
    parts = np.array_split(np.arange(len(total)), pieces)
    phases = [phase(folded(total[one], times[one] * trial_hz), width) for one in parts]
    middle = np.array([times[one].mean() for one in parts])
    return middle, middle * trial_hz - np.unwrap(phases, period=1.0)


def test_period_eleven_thousand_days_after_its_epoch(crab):
    """P = 33.7758 ms (psrcat's F0, F1 and F2 at MJD 59000; F1 makes 1.2 % of it, F2 2e-4): to 1e-5.

    A pulse leaves when the ephemeris counts a whole turn: to 1e-3 turns.
    """
    times = centres_s(crab)
    total = series(crab, CRAB_DM, np.ones(256))
    middle, turns = arrivals(total, times[: len(total)], 29.607, CRAB_WIDTH, 10)
    slope, start = np.polyfit(middle, turns, 1)
    expected, frequency = crab_turns(middle.mean())
    assert 1 / slope == pytest.approx(1 / frequency, rel=1e-5)
    assert 1 / frequency == pytest.approx(33.776e-3, rel=1e-4)
    assert abs((start + slope * middle.mean() - float(expected % 1) + 0.5) % 1 - 0.5) < 1e-3


def test_period_and_its_change(tmp_path):
    """A pulsar that slows down from 20 Hz by 2 mHz/s, an hour after its epoch: f = f0 + f1 t, P to 1e-5, F1 to 1 %."""
    spin = Spin(20.0, f1=-2e-3, pepoch_mjd=60000.0)
    source = replace(pulsar(flux=0.5, width=0.05), spin=spin)
    start_mjd = 60000.0 + 1 / 24
    seen = observe(tmp_path, receiver(1500, 1, 32, 256e-6), source, seconds=20.0, mjd=start_mjd)
    times, total = centres_s(seen), series(seen, 0.0, np.ones(32))
    middle, turns = arrivals(total, times, 12.78, 0.05, 40)
    quadratic, linear, _ = np.polyfit(middle, turns, 2)
    assert 1 / (linear + 2 * quadratic * 10) == pytest.approx(1 / (20 - 2e-3 * 3610), rel=1e-5)
    assert 2 * quadratic == pytest.approx(-2e-3, rel=0.01)


# What the interstellar medium does


def test_dispersion_measure(crab):
    """DM 56.791 pc/cm^3 (psrcat), delay DM / 2.41e-4 / f^2 (Kulkarni 2020): to 0.1."""
    _, frequency = crab_turns(5.0)
    trial = 56.0
    profiles = folded(crab.power, centres_s(crab) * frequency)
    harmonics = np.fft.rfft(profiles, axis=0) * np.exp(
        2j * np.pi * np.arange(65)[:, None] * delay_s(trial, crab.mhz) * frequency
    )
    bands = np.fft.irfft(harmonics, axis=0).reshape(128, 32, 8).mean(axis=2)
    late = np.unwrap([phase(one, CRAB_WIDTH) for one in bands.T], period=1.0) / frequency
    slope, _ = np.polyfit(delay_s(1.0, crab.mhz.reshape(32, 8)).mean(axis=1), late, 1)
    assert trial + slope == pytest.approx(CRAB_DM, abs=0.1)


def test_smearing_within_a_channel(tmp_path):
    """8.3 us DM df/MHz (nu/GHz)^-3 between a channel's edges (Lorimer & Kramer 2005): to 5 %; DM to 0.1 at 400 MHz."""
    dm, width = 100.0, 0.004
    source = pulsar(0.5, 0.3, width=width, medium=Medium(dm=dm))
    seen = observe(tmp_path, receiver(448, 2, 32, 0.5e-3, sefd=50), source, seconds=20.0)
    turns = (np.arange(1000) + 0.5) / 1000
    profiles = folded(seen.power, centres_s(seen) / 0.5, 1000)
    root = width / FWHM * math.sqrt(2)

    def box(x, height, middle, length, base):
        x = (x - middle + 0.5) % 1 - 0.5
        return base + height * (special.erf((x + length / 2) / root) - special.erf((x - length / 2) / root))

    fitted = []
    for profile, mhz in zip(profiles.T, seen.mhz):
        guess = np.ptp(profile) / 2, delay_s(dm, mhz) / 0.5 % 1, 0.03, profile.min()
        fitted.append(optimize.curve_fit(box, turns, profile, guess)[0])
    _, middle, length, _ = np.transpose(fitted)
    assert np.mean(0.5 * length / (8.3e-6 * dm * 2 * (seen.mhz / 1000) ** -3)) == pytest.approx(1, abs=0.05)
    slope, _ = np.polyfit(delay_s(1.0, seen.mhz), 0.5 * np.unwrap(middle, period=1.0), 1)
    assert slope == pytest.approx(dm, abs=0.1)


def test_scattering(tmp_path):
    """An exponential tail (Bhat et al. 2004) of 23.9 and 4.98 ms at 700 and 1000 MHz: to 10 %; index -4.4 to 0.1."""
    tau, period = 5e-3, 0.5
    sigma = math.hypot(0.01 / FWHM, 1e-3 / period / math.sqrt(12))  # of a pulse, averaged over samples of 1 ms; turns
    source = pulsar(period, 0.3, width=0.01, medium=Medium(tau_s=tau, scattering_index=-4.4))
    seen = observe(tmp_path, receiver(1296, 8, 84, 1e-3), source, seconds=40.0)
    turns = (np.arange(500) + 0.5) / 500
    profiles = folded(seen.power, centres_s(seen) / period, 500)

    def tail(x, height, middle, decay, base):
        return base + height * stats.exponnorm.pdf((x + 0.2) % 1 - 0.2, decay / sigma, middle, sigma)

    guesses = ((0.05, 0.0, tau / period * (mhz / 1000) ** -4, 0.0) for mhz in seen.mhz)
    fitted = [optimize.curve_fit(tail, turns, one, guess) for one, guess in zip(profiles.T, guesses)]
    decay, error = period * np.array([(best[2], math.sqrt(scatter[2, 2])) for best, scatter in fitted]).T
    for mhz in (700.0, 1000.0):
        near = np.abs(seen.mhz - mhz) < 40
        ratio = decay[near] / (tau * (seen.mhz[near] / 1000) ** -4.4)
        assert np.average(ratio, weights=error[near] ** -2) == pytest.approx(1, abs=0.1)
    index = np.polyfit(np.log(seen.mhz), np.log(decay), 1, w=decay / error)[0]
    assert index == pytest.approx(-4.4, abs=0.1)


def crossing(curve, level):
    """Place, in steps, where a curve falls below a level."""
    after = np.argmax(curve < level)
    return after - (level - curve[after]) / (curve[after - 1] - curve[after])


def dynamic_spectrum(path, telescope, source, seed):
    """Subtract what is off the pulse from what is on it, second by second and channel by channel."""
    seen = observe(path, telescope, source, seconds=300.0, seed=seed)
    rotations = seen.power.reshape(-1, 10, 10, 128).mean(axis=1)  # [second, phase, channel]: they begin with a pulse
    return rotations[:, [0, 1, 8, 9]].mean(axis=1) - rotations[:, 4:6].mean(axis=1)


def autocorrelation(spectrum, lags=60):
    size = [2 * n for n in spectrum.shape]
    total = np.fft.irfft2(np.abs(np.fft.rfft2(spectrum - spectrum.mean(), size)) ** 2, size)[:lags, :lags]
    return total / np.outer(*(n - np.arange(lags) for n in spectrum.shape))


def test_scintillation(tmp_path):
    """Half width 1 / (2 pi tau) and 1/e time of the dynamic spectrum's autocorrelation (Cordes & Rickett 1998): to 20 %.

    Four screens: one alone, of 256 rays, is off by 6 and 7 %.
    """
    bandwidth_mhz, time_s = 1.0, 6.0
    medium = Medium(tau_s=1e-6 / (2 * math.pi * bandwidth_mhz), scintillation_time_s=time_s)
    scene = receiver(1024, 0.4, 128, 0.01), pulsar(0.1, 0.5, width=0.2, medium=medium)
    found = sum(autocorrelation(dynamic_spectrum(tmp_path, *scene, SEED + 1000 * n)) for n in range(4))
    assert 0.4 * crossing(found[0] / found[0, 0], 0.5) == pytest.approx(bandwidth_mhz, rel=0.2)
    assert crossing(found[:, 0] / found[0, 0], math.exp(-1)) == pytest.approx(time_s, rel=0.2)


def test_rotation_measure(tmp_path):
    """Vela in a PSRFITS file: RM 31.38 rad/m^2 (psrcat) from the angles 2 RM lambda^2 of Q + iU (Burn 1966): to 0.5.

    90 % of it are linearly, 5 % circularly polarised: to 0.02.
    """
    vela = Pulsar.catalogue("Vela")
    flat = replace(vela.polarisation, alpha_deg=2, beta_deg=60)  # an angle that does not turn within a bin of phase
    vela = replace(vela, spin=Spin(11.1946499395), polarisation=flat)
    telescope = receiver(1497, 4, 64, 256e-6, sefd=38.0, stokes=True)
    path = simulate(Observation(telescope, (vela,), (), 19456 * 256e-6, seed=SEED)).write(tmp_path / "file.fits")
    table = fits.getdata(path, "SUBINT")
    mhz, power = table["DAT_FREQ"][0], table["DATA"].reshape(-1, 4 * 64)
    turns = (np.arange(len(power)) + 0.5) * 256e-6 * 11.1946499395
    profiles = folded(power.astype(np.float32), turns).reshape(128, 4, 64)
    shift = np.exp(2j * np.pi * np.arange(65)[:, None, None] * delay_s(67.99, mhz) * 11.1946499395)
    aligned = np.fft.irfft(np.fft.rfft(profiles, axis=0) * shift, axis=0)
    i, q, u, v = (aligned - np.median(aligned, axis=0)).transpose(1, 0, 2)
    squares, spectrum = (299.792458 / mhz) ** 2, (q + 1j * u)[np.argsort(i.sum(axis=1))[-8:]]
    trials = np.arange(-100, 100, 0.02)
    turned = np.exp(-2j * np.outer(squares, trials))
    assert trials[np.abs(spectrum @ turned).sum(axis=0).argmax()] == pytest.approx(31.38, abs=0.5)
    derotated = (q + 1j * u) * np.exp(-2j * 31.38 * squares)
    bright = i.sum(axis=1) > 0.2 * i.sum(axis=1).max()
    assert np.abs(derotated.sum(axis=1))[bright].sum() / i[bright].sum() == pytest.approx(0.9, abs=0.02)
    assert v[bright].sum() / i[bright].sum() == pytest.approx(0.05, abs=0.02)


# How strong a source is


def cold_sky(telescope, mhz):
    """SEFD off the plane: 25 K at 408 MHz, going as nu^-2.75 (Lawson et al. 1987), beside what's in it at mid-band."""
    warmer = 25 * ((mhz / 408) ** -2.75 - (mhz.mean() / 408) ** -2.75)
    return telescope.sefd_jy + warmer / telescope.gain_k_per_jy


def crab_nebula(telescope, mhz):
    """Add the Crab nebula, 955 Jy (nu/GHz)^-0.27 (Bietenholz et al. 1997), of 4 arc minutes in a beam that goes as 1/nu."""
    beam = telescope.beam_arcmin * mhz.mean() / mhz
    return cold_sky(telescope, mhz) + 955 * (mhz / 1000) ** -0.27 / (1 + (4 / beam) ** 2)


RECEIVERS = [
    ("Effelsberg_7beam", 2, cold_sky),
    ("Effelsberg_7beam", 1, cold_sky),
    ("Effelsberg_7beam", 2, crab_nebula),
    ("MeerKAT_L", 2, cold_sky),
    ("ASKAP", 2, cold_sky),
    ("Parkes_UWL", 2, cold_sky),
]


def matched(template, values):
    """Signal-to-noise ratio of values with unit noise, by a matched filter."""
    return (values * template).sum(axis=-1) / np.sqrt((template**2).sum(axis=-1))


@pytest.mark.parametrize("name, polarisations, sefd", RECEIVERS)
def test_signal_to_noise_ratio_of_pulses_and_of_their_fold(tmp_path, name, polarisations, sefd):
    """S/N = E sqrt(npol df / (2 sqrt(pi) w)) / SEFD of a Gaussian pulse of fluence E and sigma w, channels added in square:
    the radiometer equation (Dicke 1946; Lorimer & Kramer 2005) and a matched filter. Of pulses and of their fold: to 5 %.
    """
    telescope = replace(Telescope.preset(name), polarisations=polarisations, drift=0.0)
    period, width, wanted = 0.1, 0.05 * 0.1 / FWHM, 20.0
    mhz, step = telescope.frequencies_mhz, telescope.tsamp_s
    weights = (mhz / 1400) ** -1.6 / sefd(telescope, mhz)
    norm = math.sqrt(polarisations * abs(telescope.foff_mhz) * 1e6 * np.sum(weights**2) / (2 * math.sqrt(math.pi)))
    wide = math.hypot(width, step / math.sqrt(6))  # a sample's length, twice: it averages, and channels shift by whole samples
    nebula = Pulsar.catalogue("Crab").nebula if sefd is crab_nebula else None
    source = pulsar(period, wanted * math.sqrt(wide) / (norm * period), -1.6, medium=Medium(dm=3.0), nebula=nebula)
    seen = observe(tmp_path, telescope, source, seconds=10.2)
    total = series(seen, 3.0, weights / np.linalg.norm(weights))
    times = centres_s(seen, len(total))
    distance = (times / period + 0.5) % 1 - 0.5
    off = total[np.abs(distance) > 0.2]
    total = (total - off.mean()) / off.std()
    starts = np.round(np.arange(1, 100) * period / step).astype(int)
    near = starts[:, None] + np.arange(-int(0.02 / step), int(0.02 / step))
    assert matched(np.exp(-((distance[near] * period / wide) ** 2) / 2), total[near]).mean() == pytest.approx(wanted, rel=0.05)
    whole = slice(0, int(100 * period / step))
    profile, phases = folded(total[whole], times[whole] / period, 64), (np.arange(64) + 0.5) / 64
    wider = math.hypot(wide, period / 64 / math.sqrt(12))
    template = np.exp(-((((phases + 0.5) % 1 - 0.5) * period / wider) ** 2) / 2)
    found = matched(template, profile * math.sqrt(len(total[whole]) / 64))
    assert found == pytest.approx(wanted * 10 * math.sqrt(wide / wider), rel=0.05)


def test_spectral_index_and_flux_density(tmp_path):
    """S = 50 mJy (nu/1.4 GHz)^-1.6 from 0.7 to 4 GHz, in units of the noise SEFD / sqrt(npol df t): index to 0.1, S to 5 %."""
    telescope = replace(Telescope.preset("Parkes_UWL"), drift=0.0)
    seen = observe(tmp_path, telescope, pulsar(0.1, 0.05, -1.6, width=0.1), seconds=10.0)
    profiles = folded(seen.power, centres_s(seen) / 0.1, 50)
    off = slice(15, 35)
    noise = np.std(seen.power, axis=0, where=(np.abs((centres_s(seen) / 0.1) % 1 - 0.5) < 0.2)[:, None])
    sigma = cold_sky(telescope, seen.mhz) / math.sqrt(2 * 4e6 * 512e-6)
    flux = (profiles.mean(axis=0) - profiles[off].mean(axis=0)) / noise * sigma

    def power_law(mhz, at_1400, index):
        return at_1400 * (mhz / 1400) ** index

    (at_1400, index), _ = optimize.curve_fit(power_law, seen.mhz, flux, (0.1, -1.0), sigma)
    assert index == pytest.approx(-1.6, abs=0.1)
    assert at_1400 == pytest.approx(0.05, rel=0.05)


def test_slope_of_giant_pulses(tmp_path):
    """N(>E) ~ E^-2.13 of the Crab pulsar's giant pulses (differential 3.13(9): Kong et al. 2008), by maximum likelihood
    (Hill 1975): to 0.1. They come anywhere in a turn, so that two are rarely one, and without the nebula.
    """
    crab = Pulsar.catalogue("Crab")
    giants = replace(crab.giants, rate_hz=1.0, windows=(Window(0.0, 0.25),))
    source = replace(crab, flux_jy=0.0, giants=giants, nebula=None, medium=Medium(dm=CRAB_DM))
    sefd, step = 17.0, 1.024e-3
    seen = observe(tmp_path, receiver(1407.5, 5, 4, step, sefd=sefd), source, seconds=9000.0)
    density = series(seen, CRAB_DM, np.full(4, 0.25) * seen.power.std(axis=0)) * sefd / math.sqrt(2 * 5e6 * step)
    energy = np.convolve(density, np.ones(5), "same") * step / np.mean((seen.mhz / 1400) ** -2.7)
    least = 1.15 * 4.6e-3  # above the smallest ones, so that none is missed
    peak = np.flatnonzero((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:]) & (energy[1:-1] > least)) + 1
    groups = np.split(peak, np.flatnonzero(np.diff(peak) > 4) + 1)
    found = np.array([energy[one].max() for one in groups])
    assert len(found) / np.log(found / least).sum() == pytest.approx(2.13, abs=0.1)
    assert len(found) == pytest.approx(9000 * 1.15**-2.13, rel=0.1)


# How it changes from turn to turn


def energies(seen, period_s, bins):
    """Power of each turn and bin of phase, all channels added [turn, bin]; the noise's mean is zero."""
    each = round(period_s / seen.tsamp_s / bins)
    power = seen.power.mean(axis=1)
    return power[: len(power) // (bins * each) * bins * each].reshape(-1, bins, each).mean(axis=2)


def test_nulling(tmp_path):
    """30 % of the turns are without a pulse, in pauses of 5 turns: fraction to 0.06, length to 15 %."""
    source = replace(pulsar(0.1, 0.5, nulling=Nulling(0.3, 5.0)), components=(Component(0.5, 0.1),))
    seen = observe(tmp_path, receiver(1500, 5, 8, 2.5e-3), source, seconds=1000.0)
    turns = energies(seen, 0.1, 10)[:, 4:6].mean(axis=1)
    off = turns < 0.3 * turns.mean()
    assert off.mean() == pytest.approx(0.3, abs=0.06)
    assert off.sum() / np.count_nonzero(np.diff(off.astype(int)) == 1) == pytest.approx(5, rel=0.15)


def test_drifting_subpulses(tmp_path):
    """B0809+74: they come back after P3 = 11.0 turns (Rankin et al. 2005), 16 degrees apart, and drift towards earlier phases.

    The peak of the two-dimensional fluctuation spectrum (Weltevrede et al. 2006): P3 to 5 %, P2 to 10 %.
    """
    catalogue = Pulsar.catalogue("B0809+74")
    period = 1.25
    source = replace(catalogue, spin=Spin(1 / period), flux_jy=0.5, medium=Medium(), components=(Component(0.5, 0.12),))
    seen = observe(tmp_path, receiver(1500, 5, 8, period / 256), source, seconds=256 * period)
    turns = energies(seen, period, 256)
    spectrum = np.abs(np.fft.fft2(turns - turns.mean(axis=0))) ** 2
    spectrum[128:] = 0  # one of the two halves that say the same
    spectrum[:, 0] = 0
    slow, fast = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert 256 / slow == pytest.approx(11.0, rel=0.05)
    assert fast < 128  # exp(2 pi i (n / P3 + x / P2)): the later the turn, the smaller the phase
    assert 360 / fast == pytest.approx(0.044 * 360, rel=0.1)


# What the receiver adds


def noise(order, channels=256):
    """Build a receiver whose samples are the sum of `order` squared voltages, in units of their standard deviation."""
    return receiver(1500, 1, channels, order / 2e6)


def gamma_tail(order, sigmas):
    distribution = stats.gamma.sf if sigmas > 0 else stats.gamma.cdf
    return distribution(order + sigmas * math.sqrt(order), order)


@pytest.mark.parametrize("order", [8, 50, 200])
def test_noise_is_gamma_distributed(tmp_path, order):
    """The power of k = npol df dt voltages is Gamma(k)-distributed: Kolmogorov-Smirnov p > 0.01 in a million samples, skewness
    2 / sqrt(k) to 3 %, tails beyond 4 and 5 sigma to 10 %, from so many samples that 1200 are beyond 5 sigma.
    """
    wanted = 1200 / gamma_tail(order, 5)
    files = math.ceil(wanted / 2**26)
    rows = math.ceil(wanted / files / 256)
    beyond, count = np.zeros(2), 0
    for number in range(files):
        seen = observe(tmp_path, noise(order), seconds=rows * order / 2e6, seed=SEED + 1000 * number)
        flat = seen.power.reshape(-1)
        beyond += [np.count_nonzero(flat > 4), np.count_nonzero(flat > 5)]
        count += len(flat)
    some = np.array(flat[: 2**24], np.float64)
    assert stats.kstest(some[:1_000_000] * math.sqrt(order) + order, stats.gamma(order).cdf).pvalue > 0.01
    assert some.mean() == pytest.approx(0, abs=4 / math.sqrt(len(some))) and some.std() == pytest.approx(1, abs=1e-3)
    assert stats.skew(some) == pytest.approx(2 / math.sqrt(order), rel=0.03)
    assert beyond / count == pytest.approx([gamma_tail(order, 4), gamma_tail(order, 5)], rel=0.1)


def test_lower_tail_of_the_noise(tmp_path):
    """There are fewer samples below -3 sigma than above 3, as Gamma(200) has it: to 10 %."""
    flat = observe(tmp_path, noise(200), seconds=2**16 * 1e-4).power.reshape(-1)
    below, above = np.mean(flat < -3), np.mean(flat > 3)
    assert below == pytest.approx(gamma_tail(200, -3), rel=0.1) and above == pytest.approx(gamma_tail(200, 3), rel=0.1)


def test_noise_is_white(tmp_path):
    """Correlations of N independent samples, of all channels and at 17 lags, have variance 1/N and are never beyond 6 sigma."""
    power = observe(tmp_path, noise(50, 64), seconds=2**17 * 25e-6).power
    power = (power - power.mean(axis=0)) / power.std(axis=0)
    size = len(power) - 16
    scores = np.stack([power[:size].T @ power[lag : lag + size] for lag in range(17)]) / math.sqrt(size)
    others = np.concatenate([scores[0][np.triu_indices(64, 1)], scores[1:].reshape(-1)])
    assert np.abs(others).max() < 6
    assert 0.001 < stats.chi2(len(others)).sf((others**2).sum()) < 0.999


@pytest.mark.parametrize("nbits", [1, 2, 4, 8, 16])
def test_quantisation(tmp_path, nbits):
    """Shares of all values as the Gamma distribution, cut into 2^nbits steps and clipped at both ends, has them: chi^2 p > 0.01;
    mean and standard deviation to 0.5 % of the latter.
    """
    telescope = replace(Telescope.preset("Effelsberg_7beam"), nbits=nbits, drift=0.0)
    seen = observe(tmp_path, telescope, seconds=16384 * 102.4e-6)
    (mean, sigma), order, values = telescope.noise, 256, np.arange(2**nbits)
    edges = order + (values[1:] - 0.5 - mean) / sigma * math.sqrt(order)
    shares = np.diff(stats.gamma.cdf(edges, order), prepend=0, append=1)
    counts = np.bincount(seen.power.reshape(-1), minlength=2**nbits)
    exact, measured = (np.average(values, weights=one) for one in (shares, counts))
    spread, found = (math.sqrt(np.average((values - exact) ** 2, weights=one)) for one in (shares, counts))
    assert measured == pytest.approx(exact, abs=0.005 * spread) and found == pytest.approx(spread, rel=0.005)
    groups = np.minimum(np.cumsum(shares) * counts.sum() // 100, counts.sum() // 100 - 1).astype(int)  # of about 100 samples
    expected, observed = (np.bincount(groups, one) for one in (shares * counts.sum(), counts))
    expected, observed = expected[expected > 20], observed[expected > 20]
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01
