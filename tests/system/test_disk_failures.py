"""A disk that fails under a real writer ends in one sentence, and leaves no half-written file."""

import os
import shutil
import subprocess
import sys

import pytest

WRITE = """
import sys
from pathlib import Path
import numpy, torch, xarray, h5py
from itwin_nb.compute import write_dataset
from itwin_nb.core.errors import OutputError
from itwin_nb.core.files import atomic_path

folder = Path(sys.argv[1])
numbers = numpy.zeros(10**6)

def torch_to_path(path): torch.save(torch.from_numpy(numbers), path)
def torch_to_file(path):
    with open(path, "wb") as file: torch.save(torch.from_numpy(numbers), file)
def hdf5(path):
    with h5py.File(path, "w") as file: file["x"] = numbers
def netcdf(path):
    write_dataset(path, xarray.Dataset({"v": ("x", numbers)}).chunk(x=10**5))
def npy(path): numpy.save(path, numbers)
def text(path): path.write_text("0" * 10**7)

writers = {torch_to_path: "pt", torch_to_file: "pt", hdf5: "h5", netcdf: "nc", npy: "npy", text: "txt"}
for write, suffix in writers.items():
    try:
        with atomic_path(folder / f"{write.__name__}.{suffix}") as path:
            write(path)
    except OutputError as error:
        print(write.__name__, error)
print("left:", sorted(path.name for path in folder.iterdir()))
"""
WRITERS = ["torch_to_path", "torch_to_file", "hdf5", "netcdf", "npy", "text"]


def written(*command):
    """Run the writers and return the sentence for each, and the files that are left."""
    done = subprocess.run(
        [*command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    *sentences, left = done.stdout.splitlines()
    return dict(line.split(" ", 1) for line in sentences), left


def can_mount(folder):
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", folder]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [("size=256k", "no space left on device; free some space"), ("ro", "read-only file system")],
)
def test_full_or_read_only_disk(tmp_path, options, sentence):
    if not can_mount(tmp_path):
        pytest.skip("a small disk can be mounted by root only")
    mount = 'mount -t tmpfs -o "$1" tmpfs "$2" && exec "$3" -c "$4" "$2"'
    shell = ["unshare", "-m", "bash", "-c", mount, "bash", options, tmp_path]
    sentences, left = written(*shell, sys.executable, WRITE)
    assert [name for name in WRITERS if sentence not in sentences.get(name, "")] == []
    assert left == "left: []"


def test_file_size_limit(tmp_path):
    limit = 'ulimit -f 100; exec "$0" -c "$1" "$2"'  # in blocks of 1024 bytes
    sentences, left = written("bash", "-c", limit, sys.executable, WRITE, tmp_path)
    assert [
        name for name in WRITERS if "file too large; raise the limit" not in sentences.get(name, "")
    ] == []
    assert left == "left: []"
