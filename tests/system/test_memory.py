"""An ensemble larger than what memory is allowed is generated, kept and measured in chunks."""

import os
import subprocess
import sys

GENERATE = """
import resource, sys
import xarray as xr
from itwin_nb.compute import write_dataset
from itwin_nb.lattice import HMC, Phi4, measure

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

hmc, folder = HMC(Phi4(0.25), (64, 64), chains=2, tau=0.5, steps=3), sys.argv[1]
measure(hmc.run(10, thermalise=0, folder=folder + "/first").phi, hmc.action)
before = peak()
ensemble = hmc.run(int(sys.argv[2]), thermalise=50, folder=folder + "/blocks")
write_dataset(folder + "/ensemble.nc", ensemble)
with xr.open_dataset(folder + "/ensemble.nc", chunks={}) as kept:
    action = measure(kept.phi, hmc.action)["action"]
print(ensemble.phi.nbytes, peak() - before, action.value, action.error)
"""


def test_ensemble_larger_than_the_memory_it_takes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, tmp_path, "5000"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    size, grown, value, error = map(float, done.stdout.split())
    assert size > 320e6 and grown < size / 3
    assert abs(value - 0.5) < 4 * error  # exact: half of the sites
