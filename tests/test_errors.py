"""Ask `itwin` for what cannot be done: one sentence on stderr, the right exit status, no traceback."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_notebook

ITWIN = Path(sys.executable).with_name("itwin")
ASKED = {"workflow": "lattice_hmc", "parameters": {"L": 8}}
PROGRESS = re.compile(r"\[\d+/[\d?]+\] ")  # of a run of more than a minute
FAILED, WRONG = 1, 2


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the things on which the bad requests fall."""
    folder = tmp_path_factory.mktemp("errors")
    (folder / "file").write_text("not a folder")
    for name, content in {"notes": None, "run": ASKED, "old": {**ASKED, "workflow": "dice"}}.items():
        (folder / name).mkdir()
        text = json.dumps(content) if content else "mine"
        (folder / name / ("parameters.json" if content else "notes.txt")).write_text(text)
    (folder / "broken.ipynb").write_text('{"cells": [')
    nbformat.write(new_notebook(), folder / "empty.ipynb")
    gauge_files(folder)
    return folder


def gauge_files(folder):
    """Make a small gauge configuration, and copies of it that are damaged in several ways."""
    import numpy as np

    from itwin_nb.lattice import write_config

    unit = np.broadcast_to(np.eye(3), (4, 4, 4, 4, 4, 3, 3))
    write_config(unit, folder / "good.nersc", format="nersc")
    write_config(unit, folder / "good.ildg", format="ildg")
    for name in ("good.nersc", "good.ildg"):
        content = bytearray((folder / name).read_bytes())
        (folder / name.replace("good", "short")).write_bytes(content[:-5000])
        content[-3000] ^= 0x55
        (folder / name.replace("good", "flipped")).write_bytes(content)
    (folder / "none").write_bytes(b"")
    (folder / "text.nersc").write_text("BEGIN_HEADER\nthis is all there is")


def answer(folder, command):
    """Run a command line and return its status and the lines on stderr, without those that show progress."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    return done, [line for line in done.stderr.splitlines() if not PROGRESS.match(line)]


def check(folder, command, status, words):
    done, lines = answer(folder, command)
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert all(word in lines[0] for word in ["itwin: ", *words]), lines[0]
    assert done.returncode == status


# What is seen before a notebook starts: the words that follow `itwin`, the exit status, what must be said
AT_ONCE = [
    ("rum", WRONG, ["No such command 'rum'", "Did you mean 'run'"]),
    ("list --al", WRONG, ["'--al'"]),
    ("run", WRONG, ["Missing argument 'NAME'", "--help"]),
    ("run lattice_hmc --reume", WRONG, ["No such option '--reume'", "--resume"]),
    ("run lattice_hmc -p L", WRONG, ["-p", "2 arguments"]),
    ("run lattice_hmc extra", WRONG, ["unexpected extra argument (extra)"]),
    ("run latice_hmc", WRONG, ["no workflow 'latice_hmc'", "did you mean lattice_hmc?"]),
    ("run moon_landing", WRONG, ["no workflow 'moon_landing'", "lattice_flow, lattice_hmc, lattice_measure"]),
    ("run ../lattice_hmc", WRONG, ["no workflow '../lattice_hmc'"]),
    ("list moon_landing", WRONG, ["no workflow 'moon_landing'"]),
    ("run lattice_hmc -p LL 8", WRONG, ["no parameter 'LL'", "did you mean L?"]),
    ("run lattice_hmc -p colour red", WRONG, ["no parameter 'colour'", "it has L, "]),
    ("run lattice_hmc -p L eight", WRONG, ["L takes an integer, not 'eight'"]),
    ("run lattice_hmc -p L 8.5", WRONG, ["L takes an integer, not '8.5'"]),
    ("run lattice_hmc -p m2 nan", WRONG, ["m2 takes a number, not 'nan'"]),
    ("run lattice_hmc -p lam 1,5", WRONG, ["lam takes a number, not '1,5'"]),
    ("run lattice_measure -p shape 4,4,4,x", WRONG, ["shape takes a list", "such as 8,16", "'4,4,4,x'"]),
    ("run lattice_hmc -p out here", WRONG, ["use --out"]),
    ("run lattice_hmc --on moon", WRONG, ["no place 'moon'", "local"]),
    ("run lattice_hmc --out notes", WRONG, ["notes isn't empty", "choose another one with --out"]),
    ("run lattice_hmc --out run", WRONG, ["run isn't empty", "add --resume to continue"]),
    ("run lattice_hmc --out notes --resume", WRONG, ["holds no run to resume"]),
    ("run lattice_hmc --out old --resume", WRONG, ["holds no run of lattice_hmc"]),
    ("run lattice_hmc --out run --resume -p L 16", WRONG, ["made with", "L = 8 and not 16"]),
    ("run lattice_hmc --resume", WRONG, ["no run in", "to resume"]),
    ("run lattice_hmc --out file", FAILED, ["file", "it's a file"]),
    ("run lattice_hmc --out file/below", FAILED, ["file/below", "lies under one"]),
    ("run lattice_hmc --out /sys/itwin", FAILED, ["Cannot write /sys/itwin", "choose"]),
    ("run nowhere.ipynb", FAILED, ["nowhere.ipynb", "no such file"]),
    ("run broken.ipynb", FAILED, ["broken.ipynb isn't a notebook"]),
    ("run empty.ipynb", FAILED, ["empty.ipynb isn't a workflow", "must declare out and resume"]),
]

# What only the notebook can see; each starts a kernel
IN_THE_NOTEBOOK = [
    ("lattice_hmc -p L -4", WRONG, ["-4"]),
    ("lattice_hmc -p steps 0", WRONG, ["steps", "0"]),
    ("lattice_flow -p L 7", WRONG, ["7"]),
    ("lattice_measure", WRONG, ["No file is given", "-p path FILE"]),
    ("lattice_measure -p path nowhere.ildg", FAILED, ["nowhere.ildg"]),
    ("lattice_measure -p path notes", FAILED, ["notes", "directory"]),
    ("lattice_measure -p path file", FAILED, ["file"]),
    ("lattice_measure -p path short.ildg", FAILED, ["short.ildg"]),
    ("lattice_measure -p path flipped.nersc", FAILED, ["flipped.nersc"]),
]
MORE_IN_THE_NOTEBOOK = [
    ("lattice_hmc -p lam -1", WRONG, ["-1"]),
    ("lattice_flow -p dims 5", WRONG, ["8, 8, 8, 8, 8", "1 to 4"]),
    ("lattice_flow -p estimator newton", WRONG, ["newton"]),
    ("lattice_flow -p start no_such_model", FAILED, ["no_such_model"]),
    ("lattice_measure -p path none", FAILED, ["none"]),
    ("lattice_measure -p path text.nersc", FAILED, ["text.nersc"]),
    ("lattice_measure -p path short.nersc", FAILED, ["short.nersc"]),
    ("lattice_measure -p path flipped.ildg", FAILED, ["flipped.ildg"]),
]
IN_THE_NOTEBOOK += [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_IN_THE_NOTEBOOK]


@pytest.mark.parametrize(("words", "status", "said"), AT_ONCE)
def test_refused_at_once(here, words, status, said):
    check(here, [ITWIN, *words.split()], status, said)


@pytest.mark.parametrize(("words", "status", "said"), IN_THE_NOTEBOOK)
def test_refused_by_the_notebook(here, tmp_path, words, status, said):
    check(here, [ITWIN, "run", *words.split(), "--out", tmp_path / "out"], status, said)
    assert (tmp_path / "out").exists() == (status == FAILED)


def in_namespace(options, folder, command):
    """Run a command with a small file system mounted on a folder, or skip where only root may do that."""
    mount = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    shell = ["unshare", "-m", "bash", "-c", mount, "bash", options, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*shell, "true"], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    return [*shell, *command]


@pytest.mark.parametrize(
    ("options", "words"), [("size=4k,nr_inodes=2", "no space left on device"), ("ro", "read-only file system")]
)
def test_full_or_read_only_disk(tmp_path, options, words):
    command = [ITWIN, "run", "lattice_hmc", "--out", tmp_path / "out"]
    check("/", in_namespace(options, tmp_path, command), FAILED, [words, "out"])


def test_folder_of_someone_else(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv isn't here")
    (tmp_path / "mine").mkdir(mode=0o700)
    reachable = subprocess.run(nobody([ITWIN, "--version"]), capture_output=True).returncode == 0
    if not reachable:
        pytest.skip("another user can't read this installation")
    check("/", nobody([ITWIN, "run", "lattice_hmc", "--out", tmp_path / "mine"]), FAILED, ["permission denied"])


def nobody(command):
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]


def test_standard_output_on_a_full_disk(tmp_path):
    shell = ["bash", "-c", f"'{ITWIN}' list > /dev/full"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == FAILED
    assert done.stderr == "itwin: Cannot write or read: no space left on device.\n"
