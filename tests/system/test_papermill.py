"""Run a workflow through `itwin run` as users do: what it leaves, interrupted and resumed, alive and killed."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell

from itwin_nb.compute import run

ITWIN = Path(sys.executable).with_name("itwin")
WALK = Path(__file__).with_name("walk.ipynb")
LONG = 200  # s, for what takes five on an idle machine
KEPT = {"parameters.json", "provenance.json", "results.json", "state.json", "walk.html", "walk.ipynb"}
PROGRESS = re.compile(r"^\[\d+/[\d?]+\] .*\n", re.MULTILINE)  # a line in the log of a run of minutes


def start(folder, *arguments, **options):
    """Start `itwin` in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [ITWIN, *map(str, arguments)], cwd=folder, **{"env": environment, **pipes, **options}
    )


def end(process):
    """Wait for the end of `itwin` and return its status, output and errors."""
    stdout, stderr = process.communicate(timeout=LONG)
    return process.returncode, stdout, PROGRESS.sub("", stderr)


def itwin(folder, *arguments, status=0, **options):
    """Run `itwin` in a folder to its end and return what it said on stdout and stderr."""
    ended, stdout, stderr = end(start(folder, *arguments, **options))
    assert ended == status, stderr
    return stdout, stderr


def wait_until(true, seconds=LONG):
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, "it takes too long"
        time.sleep(0.05)


def has_walked(out):
    """Say whether a checkpoint is there."""
    return lambda: (out / "state.json").exists()


def results(out):
    return {name: item["value"] for name, item in json.loads((out / "results.json").read_text()).items()}


def outputs(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("whole run")
    (folder / "words.txt").write_text("left foot, right foot")
    said = itwin(folder, "run", WALK, "-p", "file", "words.txt", "-p", "steps", "30", "--out", "a {b} ü")
    return folder / "a {b} ü", *said


def test_results_are_printed_and_kept(whole):
    out, stdout, stderr = whole
    assert stderr == ""
    assert {path.name for path in out.iterdir()} == KEPT
    assert re.search(r"^position +-?\d+\.\d+ +steps$", stdout, re.MULTILINE)
    assert f"{out.name}/walk.html" in stdout
    assert results(out)["text"] == "left foot, right foot"


def test_provenance(whole):
    record = json.loads((whole[0] / "provenance.json").read_text())
    asked = json.loads((whole[0] / "parameters.json").read_text())
    assert record["parameters"] == {"steps": 30} and record["seed"] == 1
    assert asked["workflow"] == "walk" and asked["parameters"]["steps"] == 30


def test_executed_notebook_shows_the_bar_and_no_widgets(whole):
    notebook = whole[0] / "walk.ipynb"
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert kinds == {"image/png", "text/markdown", "text/plain"}
    assert any("walking: 100%" in output["data"]["text/plain"] for output in outputs(notebook))
    assert "widgets" not in nbformat.read(notebook, as_version=4).metadata


def test_page_opens_without_a_network(whole, page):
    page.goto((whole[0] / "walk.html").as_uri())
    assert page.title() == "walk"
    assert "walking: 100%" in page.inner_text("body")
    assert page.evaluate("document.images[0].naturalWidth") > 100
    asked_for = [problem for problem in page.watch.problems if problem.startswith("failed: ")]
    assert all("/mathjax/" in problem for problem in asked_for)
    assert not any(problem.startswith("uncaught: ") for problem in page.watch.problems)


def test_a_kernel_computes_with_one_thread(whole):
    assert results(whole[0])["threads"] == "1"


def test_runs_are_numbered_and_the_last_is_resumed(tmp_path):
    runs = tmp_path / "runs" / "walk"
    itwin(tmp_path, "run", WALK, "-p", "steps", "4")
    itwin(tmp_path, "run", WALK, "-p", "steps", "5", env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert results(runs / "002")["threads"] == "2"
    itwin(tmp_path, "run", WALK, "--resume")
    assert sorted(path.name for path in runs.iterdir()) == ["001", "002"]
    assert (results(runs / "001")["first"], results(runs / "002")["first"]) == (0, 5)


@pytest.fixture
def broken_kernel(tmp_path):
    """The environment of a user who has broken the kernel that Jupyter calls python3."""
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "broken", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    return {**os.environ, "JUPYTER_PATH": str(tmp_path)}


def read_terminal(process, master):
    """Return all that a process writes to its terminal."""
    said = b""
    while process.poll() is None or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.1)[0]:
            try:
                said += os.read(master, 65536)
            except OSError:  # Linux's way to say that nobody writes any more
                break
    return said.decode()


def test_progress_lives_in_the_terminal(tmp_path, broken_kernel):
    master, slave = pty.openpty()
    terminal = {"stdin": slave, "stdout": slave, "stderr": slave, "env": broken_kernel}
    process = start(tmp_path, "run", WALK, "-p", "pause", "0.05", **terminal)
    os.close(slave)
    said = read_terminal(process, master)
    os.close(master)
    assert process.wait(LONG) == 0
    shares = [int(share) for share in re.findall(r"\[5/8\] Walking  walking: +(\d+)%", said)]
    assert len(set(shares)) > 5 and shares == sorted(shares)
    assert re.search(r"\r\x1b\[KWalking  \d+\.\d s\r\n", said)


def interrupted(folder, out, number):
    """Interrupt a walk after its first checkpoint; return the arguments with which it says one continues."""
    process = start(folder, "run", WALK, "-p", "steps", "30", "-p", "pause", "0.3", "--out", out)
    wait_until(has_walked(out))
    process.send_signal(number)
    status, stdout, stderr = end(process)
    assert (status, stdout) == (130, "")
    sentence = re.fullmatch(r"itwin: Stopped in cell 5 \(Walking\): continue with itwin (.*)\n", stderr)
    assert sentence, stderr
    assert (out / "walk.html").exists() and not (out / "results.json").exists()
    return shlex.split(sentence[1])


def test_the_end_of_a_batch_job_is_an_interrupt(tmp_path):
    continued = interrupted(tmp_path, tmp_path / "out", signal.SIGTERM)
    assert continued == ["run", str(WALK), "--out", "out", "--resume"]


def test_interrupted_and_resumed_is_uninterrupted(whole, tmp_path):
    out = tmp_path / "out"
    itwin(tmp_path, *interrupted(tmp_path, out, signal.SIGINT))
    assert 5 <= results(out)["first"] < 30
    assert results(out)["position"] == results(whole[0])["position"]


def test_killed_and_resumed_is_uninterrupted(whole, tmp_path):
    """Killed after a second run that wanted the same folder was refused."""
    out = tmp_path / "out"
    process = start(tmp_path, "run", WALK, "-p", "steps", "30", "-p", "pause", "0.5", "--out", out)
    wait_until(has_walked(out))
    _, stderr = itwin(tmp_path, "run", WALK, "--out", out, "--resume", status=2)
    assert re.fullmatch(r"itwin: Another run is working in .*\n", stderr)
    (kernel,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate(timeout=LONG)
    wait_until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    itwin(tmp_path, "run", WALK, "--out", out, "--resume")
    assert 5 <= results(out)["first"] < 30
    assert results(out)["position"] == results(whole[0])["position"]
    assert {path.name for path in out.iterdir()} == KEPT


def test_second_interrupt_does_not_wait(tmp_path):
    out = tmp_path / "out"
    process = start(tmp_path, "run", WALK, "-p", "pause", "0.3", "-p", "deaf", "yes", "--out", out)
    wait_until(has_walked(out))
    process.send_signal(signal.SIGINT)
    wait_until(lambda: json.loads((out / "state.json").read_text()).get("deaf"))
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, _, stderr = end(process)
    assert status == 130 and stderr.startswith("itwin: Stopped in cell 5 (Walking): continue with")
    assert time.monotonic() - begin < 45 and (out / "walk.html").exists()


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        ("yes", r"Cell 7 \(Ending\) failed with RuntimeError: The walk .*; the executed notebook is .*"),
        ("die", r"The kernel died in cell 7 \(Ending\), .*; the executed notebook is .*"),
    ],
)
def test_a_failed_run_keeps_its_notebook(tmp_path, fail, sentence):
    _, stderr = itwin(tmp_path, "run", WALK, "-p", "fail", fail, "--out", "out", status=1)
    assert re.fullmatch(f"itwin: {sentence}\n", stderr)
    assert {path.name for path in (tmp_path / "out").iterdir()} == KEPT - {"results.json", "provenance.json"}
    assert any("walking: 100%" in str(output) for output in outputs(tmp_path / "out" / "walk.ipynb"))


def test_a_traceback_is_for_those_who_ask(tmp_path):
    _, stderr = itwin(tmp_path, "run", WALK, "-p", "steps", "many", "--debug", status=2)
    assert "Traceback (most recent call last)" in stderr and stderr.endswith("not 'many'.\n")


def test_disk_that_fills_while_the_job_runs(tmp_path):
    """A disk of 300 kB is full in the midst of the run, at the notebook or at the job's own files."""
    (tmp_path / "disk").mkdir()
    mount = 'mount -t tmpfs -o size=300k tmpfs "$1" && shift && exec "$@"'
    shell = ["unshare", "-m", "bash", "-c", mount, "bash", tmp_path / "disk"]
    if subprocess.run([*shell, "true"], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    notebook = nbformat.read(WALK, as_version=4)
    notebook.cells.append(new_code_cell("(Path(out) / 'large').write_text('0' * 10**6)"))
    nbformat.write(notebook, tmp_path / "walk.ipynb")
    command = [*shell, ITWIN, "run", "walk.ipynb", "--out", "disk/out", "--no-progress"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 1
    assert re.fullmatch(r"itwin: .*[Nn]o space left on device.*\n", done.stderr)


def test_python_api_on_a_client(whole, tmp_path):
    from dask.distributed import Client

    with Client(n_workers=1, threads_per_worker=1, dashboard_address="localhost:0") as client:
        found = run(WALK, {"steps": 30}, on=client, out=tmp_path / "out", progress=False)
    assert found["position"]["value"] == results(whole[0])["position"]


HEAVY = "papermill", "nbconvert", "dask", "distributed", "torch", "numpy", "matplotlib"


def test_command_line_is_light():
    code = f"import itwin_nb.cli, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize(("argument", "limit"), [("--help", 0.5), ("list", 1.0)])
def test_commands_answer_quickly(argument, limit):
    """In processor time, so that a busy machine makes no difference; the best of three."""
    command = [sys.executable, "-c", MEASURE, ITWIN, argument]
    assert min(float(subprocess.check_output(command)) for _ in range(3)) < limit


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_a_closed_pipe_is_no_error(tmp_path, command):
    shell = f"set -o pipefail; {shlex.quote(str(ITWIN))} {command} | head -c 1"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_finds_what_is_needed(tmp_path):
    stdout, _ = itwin(tmp_path, "doctor")
    assert not re.search("^bad", stdout, re.MULTILINE)
    for what in ("Python 3", "numpy", "cores: ", "memory: ", "SLURM", "GPU", "extra dev"):
        assert what in stdout
    assert all(": " in line for line in stdout.splitlines() if line.startswith("no "))
