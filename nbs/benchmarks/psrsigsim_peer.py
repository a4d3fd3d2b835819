"""Simulate a pulsar in search mode with PsrSigSim, and print what it cost as JSON: `python psrsigsim_peer.py SECONDS`.

The Python is that of PsrSigSim's own environment (tests/system/radio-tools makes it and says where). 256 channels, 400 MHz around
1.4 GHz, 64 us: a pulsar with scattering on its profile, dispersion and radiometer noise, which is all that PsrSigSim 1.0.1 has for
search mode. It has no interference and no scintillation, keeps everything in memory, and writes no search-mode file, so that its
time holds neither quantisation nor a file.
"""

import contextlib
import json
import os
import resource
import sys
import time

import numpy as np
from psrsigsim.ism import ISM
from psrsigsim.pulsar import GaussProfile, Pulsar
from psrsigsim.signal import FilterBankSignal
from psrsigsim.telescope import Backend, Receiver, Telescope

CENTER_MHZ, WIDTH_MHZ, CHANNELS, TSAMP_S = 1400, 400, 256, 64e-6
RATE_MHZ = 1e-6 / TSAMP_S
PERIOD_S, FLUX_JY, DM, TAU_S = 0.0333924123, 0.5, 56.77, 1e-4  # tau at the center


def telescope():
    """Make a dish of 100 m with one receiver."""
    dish = Telescope(100.0, Tsys=25.0, name="Effelsberg")
    # a backend faster than the signal: at the same rate, rounding may send it through a loop in Python that rebins, 12 times slower
    backend = Backend(samprate=RATE_MHZ, name="search")
    dish.add_system("L band", Receiver(fcent=CENTER_MHZ, bandwidth=WIDTH_MHZ, name="L band"), backend)
    return dish


def simulate(signal, pulsar, ism, dish, seconds):
    """Fill the signal: pulses, then what the medium and the telescope add."""
    ism.scatter_broaden(signal, TAU_S, CENTER_MHZ, convolve=True, pulsar=pulsar)
    pulsar.make_pulses(signal, tobs=seconds)
    ism.disperse(signal, DM)
    dish.observe(signal, pulsar, system="L band", noise=True)


def measure(seconds):
    """Simulate once; imports, and making the objects, are not counted."""
    np.random.seed(1)
    seconds = (round(seconds / TSAMP_S / 2) * 2 + 0.5) * TSAMP_S  # it rounds down, and fails with an odd number of samples
    signal = FilterBankSignal(CENTER_MHZ, WIDTH_MHZ, Nsubband=CHANNELS, sample_rate=RATE_MHZ, fold=False)
    pulsar = Pulsar(PERIOD_S, FLUX_JY, profiles=GaussProfile(peak=0.5, width=0.02), name="B0531+21", specidx=-3.1)
    ism, dish = ISM(), telescope()
    start = time.process_time()
    simulate(signal, pulsar, ism, dish, seconds)
    cpu_s = time.process_time() - start
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"samples": signal.data.size, "cpu_s": cpu_s, "peak_bytes": peak_bytes}


if __name__ == "__main__":
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it shows its progress
        figures = measure(float(sys.argv[1]))
    print(json.dumps(figures))
