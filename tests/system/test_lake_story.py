"""User story 4.1-1: a chain begun at one site goes on at another, by another member, on both kinds of lake."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from lakeside import approve, lake

from itwin_nb.lake import Lake
from itwin_nb.lattice import HMC, Phi4

pytestmark = pytest.mark.lake
ITWIN = [sys.executable, "-c", "import sys; from itwin_nb.cli import main; sys.exit(main())"]
DISCOVERED = ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "OIDC_SOCK", "ITWIN_LAKE")
CHAINS, THERMALISE = 8, 100
TOKEN = re.compile(rb"eyJ[\w-]+\.eyJ")


class Member:
    """A member of the group at a machine of their own: a home, and what was logged in there."""

    def __init__(self, home, lake_folder):
        home.mkdir()
        clean = {key: value for key, value in os.environ.items() if key not in DISCOVERED}
        self.home, self.environment = home, {**clean, "XDG_CACHE_HOME": str(home / "cache"), "ITWIN_LAKE": str(lake_folder)}

    def itwin(self, *arguments):
        command = [*ITWIN, *map(str, arguments)]
        done = subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log_in(self, user):
        """Run `itwin lake login`, and be the person with the browser."""
        command = [*ITWIN, "lake", "login"]
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as login:
            approve(login.stdout.readline().split()[1], user)
            said, problem = login.communicate(timeout=60)
        assert login.returncode == 0, problem
        assert user in self.itwin("lake", "whoami") and user in said

    def run(self, configs, seed, *more):
        parameters = {"configs": configs, "seed": seed, "chains": CHAINS, "thermalise": THERMALISE}
        words = [word for pair in parameters.items() for word in ("-p", *pair)]
        self.itwin("run", "lake_hmc_restart", *words, *more, "--out", "out", "--no-progress")
        return {name: item["value"] for name, item in json.loads((self.home / "out" / "results.json").read_text()).items()}


@pytest.fixture(params=["embedded", "rucio"])
def lake_folder(request, tmp_path):
    """The same two sites, with a catalogue of their own or at Rucio: one line of lake.yaml."""
    here, folder = lake(), tmp_path / "lake"
    folder.mkdir()
    identity = {"issuer": here["issuer"], "client": here["client"], "scopes": here["scopes"]}
    kind = {"sites": here["sites"]} if request.param == "embedded" else {"catalog": here["rucio"]}
    (folder / "lake.yaml").write_text(yaml.safe_dump({**kind, "identity": identity, "authority": here["authority"]}))
    return folder


def uninterrupted(configs, seed):
    """Give the checksum of the fields of a chain that nobody interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fields = HMC(Phi4(-4.0, 8.0), (8, 8), chains=CHAINS, steps=8).run(configs, seed=seed, thermalise=THERMALISE).phi.values
    torch.set_num_threads(threads)
    return hashlib.sha256(fields.tobytes()).hexdigest()


def tokens_in(folder):
    """List the files below a folder that hold something like a token; the cache of the login apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("login-"))
    return [path for path in files if TOKEN.search(path.read_bytes())]


def test_a_chain_goes_on_at_another_site(lake_folder, tmp_path, monkeypatch):
    seed = int.from_bytes(os.urandom(4))
    first, second = Member(tmp_path / "first", lake_folder), Member(tmp_path / "second", lake_folder)
    first.log_in("producer")
    begun = first.run(100, seed, "-p", "site", "SITE-A", "-p", "replica", "SITE-B")
    assert (begun["files_found"], begun["files_now"]) == (0, 2)
    block = first.itwin("lake", "find", "kind='checkpoint'", f"seed={seed}").split()[0]

    second.log_in("reader")
    ended = second.run(200, seed, "-p", "store", "False")
    assert ended["files_found"] == 2
    assert ended["fields_sha256"] == uninterrupted(200, seed) != begun["fields_sha256"]

    record = json.loads((first.home / "out" / "provenance.json").read_text())
    monkeypatch.setenv("XDG_CACHE_HOME", first.environment["XDG_CACHE_HOME"])
    known, entry = Lake(lake_folder).provenance(block), Lake(lake_folder).catalog.entry(block)
    assert (known["owner"], known["run"], known["record"]["id"]) == ("producer", record["id"], record["id"])
    assert sorted(entry.replicas) == ["SITE-A", "SITE-B"]
    used = json.loads((second.home / "out" / "provenance.json").read_text())["inputs"].values()
    assert entry.sha256 in {one["sha256"] for one in used}
    assert tokens_in(tmp_path) == []
