"""Kill `itwin run lattice_flow` while it trains and while it runs HMC; resumed, it must end as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import xarray as xr

ITWIN = Path(sys.executable).with_name("itwin")
PARAMETERS = dict(L=4, lam=8.0, steps=400, batch=64, samples=2048, hmc_chains=8, hmc_configs=800, hmc_every=1)


def start(out, *options):
    words = [word for name, value in PARAMETERS.items() for word in ("-p", name, str(value))]
    return subprocess.Popen([ITWIN, "run", "lattice_flow", *words, "--out", out, *options],
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(pattern, out, process, count=1, limit=300):
    end = time.monotonic() + limit
    while len(list(out.glob(pattern))) < count:
        assert process.poll() is None, f"it ended before {pattern} appeared"
        assert time.monotonic() < end, f"no {pattern} after {limit} s"
        time.sleep(0.05)


def finish(process, status=0):
    _, message = process.communicate(timeout=300)
    assert process.returncode == status, message
    return message


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(out))
    return out


def same(a, b):
    weights = [torch.load(out / "model" / "weights.pt", weights_only=True) for out in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("flow.nc", "hmc.nc"):
        with xr.open_dataset(a / name, engine="h5netcdf") as x, xr.open_dataset(b / name, engine="h5netcdf") as y:
            assert x.identical(y)


def test_sigkill_in_training_then_sigint_in_hmc(whole, tmp_path):
    out = tmp_path / "run"
    process = start(out)
    wait_for("training.pt", out, process)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (out / "results.json").exists()

    process = start(out, "--resume")
    wait_for("hmc/batch-*/block-*.pt", out, process, count=7)
    process.send_signal(signal.SIGINT)
    message = finish(process, status=130)
    assert "--resume" in message.splitlines()[-1]
    assert not (out / "results.json").exists()

    finish(start(out, "--resume"))
    same(out, whole)
