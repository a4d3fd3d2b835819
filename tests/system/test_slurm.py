"""Run on a real SLURM through the calls that the twins use; disturb it, and get what an undisturbed run gives."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from itwin_nb.compute import make_cluster
from itwin_nb.lattice import HMC, Flow, Phi4, TrainConfig, train

pytestmark = pytest.mark.slurm
ITWIN = Path(sys.executable).with_name("itwin")
HERE = Path(__file__).parent
CRITICAL = Phi4(m2=-4.0, lam=4.572)
SITE = {"partition": "batch", "interface": "lo", "memory": "1500 MiB", "patience": 90, "walltime": "00:20:00"}
ASKED = dict(L=32, lam=4.572, chains=16, configs=500, thermalise=100, workers=2)  # two batches of 8 chains


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()


@pytest.fixture
def site(tmp_path):
    """A site of this test only: its jobs have a name of their own, so that others aren't disturbed."""
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    scratch = Path("/var/tmp/itwin-slurm/scratch") / name
    (tmp_path / "sites").mkdir()

    def write(**more):
        profile = {**SITE, "scratch": str(scratch), "directives": [f"--comment={name}"], **more}
        (tmp_path / "sites" / "mine.yaml").write_text(yaml.safe_dump(profile))
        return name

    yield write
    shutil.rmtree(scratch, ignore_errors=True)


def jobs_of(name):
    rows = subprocess.run(["squeue", "-h", "-o", "%i %k"], capture_output=True, text=True).stdout.split("\n")
    return [row.split()[0] for row in rows if row.endswith(name)]


def test_same_ensemble_here_and_on_one_and_two_workers():
    hmc = HMC(CRITICAL, (32, 32), chains=24)
    here = hmc.run(10, seed=1, thermalise=10)
    for jobs in (1, 2):
        with make_cluster("test", {"patience": 90.0}, jobs=jobs) as client:
            client.wait_for_workers(jobs, timeout=90)
            assert hmc.run(10, seed=1, thermalise=10, cluster=client).identical(here)


def test_two_workers_train_as_one_does(tmp_path):
    config = TrainConfig(steps=60, batch=32, rate=2e-3)
    alone, together = Flow((8, 8)), Flow((8, 8))
    one = train(alone, CRITICAL, config)
    with make_cluster("test", {"patience": 90.0}, jobs=2) as client:
        two = train(together, CRITICAL, config, tmp_path / "state.pt", cluster=client, workers=2)
    assert np.allclose(one.history["loss"], two.history["loss"], rtol=1e-4, atol=1e-3)
    vectors = [torch.nn.utils.parameters_to_vector(flow.parameters()) for flow in (alone, together)]
    assert (vectors[0] - vectors[1]).abs().max() < 1e-3


def test_sweep_of_eight_runs(tmp_path, site):
    site()
    words = ["run", "lattice_hmc", "-p", "lam=4:7.5:0.5", "-p", "L=4", "-p", "chains=4", "-p", "configs=20"]
    done = subprocess.run(
        [ITWIN, *words, "--on", "mine", "--jobs", "2", "--out", "sweep"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with xr.open_dataset(tmp_path / "sweep" / "sweep.nc", engine="h5netcdf") as data:
        assert data.lam.values.tolist() == [4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5]
        assert data.action.notnull().all() and (data.acceptance > 0.5).all()
    assert (tmp_path / "sweep" / "sweep.html").exists() and done.stdout.count("done") == 8


def test_flow_trained_and_compared_on_two_workers(tmp_path, site):
    site()
    words = ["-p", "L=4", "-p", "steps=60", "-p", "batch=64", "-p", "hmc_configs=50", "-p", "samples=4096"]
    command = [ITWIN, "run", "lattice_flow", *words, "-p", "workers=2", "--on", "mine", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["acceptance"]["value"] > 0.5 and results["throughput"]["value"] > 10
    assert 0 < results["efficiency"]["value"] < 1.05


REFUSED = {
    "partition": ({"partition": "gold"}, "SLURM has no partition 'gold' for us: it has batch, short, spare."),
    "memory": ({"memory": "64 GiB"}, "SLURM refuses: allocation failure: Requested node configuration is not available."),
    "walltime": ({"partition": "short", "walltime": "01:00:00"}, "in 5 s: job {} is PENDING (PartitionTimeLimit)."),
    "later": ({"directives": ["--begin=now+1hour"], "patience": 4}, "in 4 s: job {} is PENDING (BeginTime)."),
    "full": ({"directives": ["--exclusive", "-w", "nb1"], "patience": 6}, "is PENDING (Resources)."),
    "broken": ({"environment": ["exit 1"], "patience": 12}, "No worker started in 12 s: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_worker_and_why(tmp_path, site, case):
    profile, sentence = REFUSED[case]
    site(**profile)
    busy = slurm("sbatch", "--parsable", "-o", "/dev/null", "-w", "nb1", "--mem=100M", "--wrap", "sleep 120")
    command = [ITWIN, "run", "lattice_hmc", "--on", "mine", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    subprocess.run(["scancel", *busy], check=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(re.escape(sentence).replace(re.escape("{}"), r"\d+"), done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def test_slurm_absent(tmp_path):
    command = [ITWIN, "run", "lattice_hmc", "--on", "slurm"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": str(ITWIN.parent)}
    )
    assert done.returncode == 1 and "SLURM isn't here (no sbatch): log in where jobs" in done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    hmc = HMC(Phi4(-4.0, ASKED["lam"]), (32, 32), chains=16, steps=8)
    return hmc.run(ASKED["configs"], seed=0, thermalise=ASKED["thermalise"])


def start(folder, *options):
    words = [word for name, value in ASKED.items() for word in ("-p", f"{name}={value}")]
    command = [ITWIN, "run", "lattice_hmc", "--out", "run", *words, "--on", "mine", *options]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_blocks(folder, process, count=4):
    end = time.monotonic() + 200
    while len(list(folder.glob("blocks/*/block-*.pt"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "no blocks"
        time.sleep(0.2)


def finish(process, status=0):
    _, message = process.communicate(timeout=400)
    assert process.returncode == status, message
    return message


def same(folder, undisturbed):
    with xr.open_dataset(folder / "ensemble.nc", engine="h5netcdf") as data:
        assert np.array_equal(data.phi, undisturbed.phi)


def cancel_job(name, process):
    subprocess.run(["scancel", jobs_of(name)[0]], check=True)


def kill_worker(name, process):
    for pid in slurm("pgrep", "-f", "distributed.cli.dask_worker"):
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        children = slurm("pgrep", "-P", pid, "-f", "spawn_main")
        if f"SLURM_JOB_ID={jobs_of(name)[0]}\0" in environment and children:
            os.kill(int(children[0]), signal.SIGKILL)
            return
    raise AssertionError("no worker to kill")


def restart_controller(name, process):
    pid = int(Path("/var/tmp/itwin-slurm/slurmctld.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    time.sleep(2)
    subprocess.run([HERE / "slurm-up"], check=True)


def take_node_down(name, process):
    jobs = jobs_of(name)
    subprocess.run(["scontrol", "update", "NodeName=nb3", "State=down", "Reason=test"], check=True)
    assert len(jobs) == 2 and slurm("squeue", "-h", "-j", ",".join(jobs), "-t", "running") == []


@pytest.mark.parametrize(
    "disturb",
    [
        cancel_job,
        restart_controller,
        pytest.param(take_node_down, marks=pytest.mark.slow),
        pytest.param(kill_worker, marks=pytest.mark.slow),
    ],
)
def test_disturbed_run_ends_right(tmp_path, site, undisturbed, disturb):
    name = site(partition="spare" if disturb is take_node_down else "batch")
    process = start(tmp_path)
    wait_for_blocks(tmp_path / "run", process)
    disturb(name, process)
    finish(process)
    same(tmp_path / "run", undisturbed)


def test_scheduler_killed_and_resumed(tmp_path, site, undisturbed):
    site()
    process = start(tmp_path)
    wait_for_blocks(tmp_path / "run", process)
    process.kill()
    process.communicate()
    finish(start(tmp_path, "--resume"))
    same(tmp_path / "run", undisturbed)


def fill(disk):
    with pytest.raises(OSError), open(disk / "rubbish", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))


def test_full_scratch_disk_and_resumed(tmp_path, site, undisturbed, small_disk):
    disk = small_disk(400)
    site(scratch=str(disk / "scratch"))
    process = start(tmp_path, "--out", "disk/out")
    wait_for_blocks(disk / "out", process)
    fill(disk)
    message = finish(process, status=1)
    assert "no space left on device; free some space" in message and "Traceback" not in message
    (disk / "rubbish").unlink()
    finish(start(tmp_path, "--out", "disk/out", "--resume"))
    same(disk / "out", undisturbed)


@pytest.mark.slow
def test_walltime_shorter_than_the_run(tmp_path, site, undisturbed):
    site(walltime="1")
    finish(start(tmp_path))
    same(tmp_path / "run", undisturbed)
