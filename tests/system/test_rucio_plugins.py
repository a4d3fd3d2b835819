"""Rucio's plug-ins at work in a real server with real sites: rules, failing sources, rights, its own command line."""

import os
import socket
import subprocess
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import lakeside
from itwin_nb.lake.identity import read_token
from itwin_nb.lake.webdav import WebDAV

pytestmark = pytest.mark.lake


@dataclass
class File:
    """A file of the lake that has a name of its own, first at SITE-A only."""

    content: bytes = field(default_factory=lambda: os.urandom(2_000_003))

    def __post_init__(self):
        self.name = f"test-{os.urandom(5).hex()}"
        self.did = {"scope": "lattice", "name": self.name}
        here = lakeside.lake()
        token = read_token(lakeside.device_token("producer")["access_token"])
        self.sites = {name: WebDAV(url, token, here["authority"]) for name, url in here["sites"].items()}
        query = f"lfn=lattice:{self.name}&operation=write"
        (address,) = lakeside.ask_rucio("producer", "GET", f"/rses/SITE-A/lfns2pfns?{query}").json().values()
        self.path = address.removeprefix(here["sites"]["SITE-A"]).lstrip("/")

    def put(self, content=None):
        content = content or self.content
        self.sites["SITE-A"].write(self.path, [content], len(content))

    def register(self, site="SITE-A", user="producer", **options):
        sums = {"bytes": len(self.content), "adler32": f"{zlib.adler32(self.content):08x}"}
        replicas = {"rse": site, "files": [{**self.did, **sums}]}
        return lakeside.ask_rucio(user, "POST", "/replicas", json=replicas, **options)

    def replicate(self, site="SITE-B", **options):
        wish = {"dids": [self.did], "account": "producer", "copies": 1, "rse_expression": site, **options}
        (self.rule,) = lakeside.ask_rucio("producer", "POST", "/rules/", json=wish).json()

    def state(self):
        return lakeside.ask_rucio("producer", "GET", f"/rules/{self.rule}").json()["state"]

    def is_at(self, name):
        return self.sites[name]._ask("HEAD", self.path, good=(404,)).ok

    def read(self, name):
        return b"".join(self.sites[name].read(self.path))

    def change(self, **options):
        lakeside.ask_rucio("producer", "PUT", f"/rules/{self.rule}", json={"options": options})


def logged(name):
    """Return the lines of the daemons' log on a file."""
    log = Path(lakeside.lake()["logs"], "daemons.log").read_text()
    return [line for line in log.splitlines() if name in line]


def test_rule_copies_a_file_and_its_end_deletes_it():
    file = File()
    file.put()
    file.register()
    assert not file.is_at("SITE-B")
    file.replicate()
    lakeside.wait_until(lambda: file.state() == "OK")
    assert file.read("SITE-B") == file.content
    states = lakeside.ask_rucio("reader", "GET", f"/replicas/lattice/{file.name}").json()["states"]
    assert states == {"SITE-A": "AVAILABLE", "SITE-B": "AVAILABLE"}
    file.change(lifetime=-1, purge_replicas=True)
    lakeside.wait_until(lambda: not file.is_at("SITE-B"))
    assert file.read("SITE-A") == file.content


def test_lost_file_is_tried_again_and_copied_when_it_is_back():
    file = File()
    file.register()
    file.replicate()
    lakeside.wait_until(lambda: file.state() == "STUCK")
    assert [line.split()[-1] for line in logged(file.name) if "REQUEUED" in line] == ["1", "2", "3"]
    assert not file.is_at("SITE-B")
    file.put()
    file.change(boost_rule=True)  # Rucio waits two hours otherwise
    lakeside.wait_until(lambda: file.state() == "OK")
    assert file.read("SITE-B") == file.content


def test_damaged_source_is_never_copied():
    file = File()
    file.put(bytes(len(file.content)))
    file.register()
    file.replicate()
    lakeside.wait_until(lambda: file.state() == "STUCK")
    assert any("came damaged" in line for line in logged(file.name))
    file.change(lifetime=-1, purge_replicas=True)
    folder = file.path.rpartition("/")[0]
    listing = file.sites["SITE-B"]._ask("PROPFIND", folder, headers={"Depth": "1"}).text
    assert file.name not in listing


@pytest.fixture
def dead_site():
    """Register a site that nobody serves, nearer to SITE-B than SITE-A is."""
    name = f"DEAD-{os.urandom(4).hex().upper()}"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        protocol = lakeside.ask_rucio("operator", "GET", "/rses/SITE-A").json()["protocols"][0]
        dead = {**protocol, "port": unused.getsockname()[1]}
        lakeside.ask_rucio("operator", "POST", f"/rses/{name}")
        lakeside.ask_rucio("operator", "POST", f"/rses/{name}/protocols/davs", json=dead)
        lakeside.ask_rucio("operator", "POST", f"/rses/{name}/distances/SITE-B", json={"distance": 0})
        yield name
        lakeside.ask_rucio("operator", "DELETE", f"/rses/{name}")


def test_dead_source_gives_way_to_the_next(dead_site):
    file = File()
    file.put()
    file.register()
    file.register(dead_site)
    file.replicate()
    lakeside.wait_until(lambda: file.state() == "OK")
    assert file.read("SITE-B") == file.content
    lines = logged(file.name)
    assert any(f"can't be copied from {dead_site}" in line for line in lines)
    assert not any("REQUEUED" in line for line in lines)


@pytest.mark.parametrize("user", ["reader", "outsider"])
def test_only_producers_register_replicas(user):
    file = File()
    answer = file.register(user=user, good=(401,))
    assert user != "reader" or "Only producers change" in answer.json()["ExceptionMessage"]
    lakeside.ask_rucio("producer", "GET", f"/dids/lattice/{file.name}", good=(404,))


@pytest.fixture
def rucio(tmp_path):
    """Run Rucio's own command line as a user."""
    here = lakeside.lake()

    def run(user, *command):
        (tmp_path / user).write_text(lakeside.device_token(user)["access_token"])
        options = {
            "rucio_host": here["rucio"],
            "auth_host": here["rucio"],
            "auth_type": "oidc",
            "account": here["accounts"][user],
            "ca_cert": here["authority"],
            "auth_token_file_path": tmp_path / user,
        }
        text = "[client]\n" + "".join(f"{name} = {value}\n" for name, value in options.items())
        (tmp_path / "rucio.cfg").write_text(text + "[policy]\npermission = generic\n")
        environment = {"RUCIO_CONFIG": str(tmp_path / "rucio.cfg"), "REQUESTS_CA_BUNDLE": here["authority"]}
        program = [lakeside.STATE / "rucio/bin/rucio", *command]
        return subprocess.run(
            program,
            cwd=tmp_path,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_rucio_uploads_and_downloads(rucio, tmp_path):
    name, content = f"test-{os.urandom(5).hex()}", os.urandom(3_000_001)
    (tmp_path / name).write_bytes(content)
    done = rucio("producer", "upload", "--rse", "SITE-A", "--scope", "lattice", name)
    assert done.returncode == 0, done.stdout + done.stderr
    for scheme in ("davs", "https"):
        done = rucio("reader", "download", "--protocol", scheme, "--dir", scheme, f"lattice:{name}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / scheme / "lattice" / name).read_bytes() == content
    assert "eyJ" not in done.stdout + done.stderr


def test_no_token_is_in_a_log():
    logs = [path for path in lakeside.STATE.rglob("*.log") if "node_modules" not in path.parts]
    assert len(logs) > 5
    assert [path.name for path in logs if "eyJ" in path.read_text(errors="replace")] == []
