"""A lake with a site that is reached by XRootD's own protocol: what the user sees is the same as with WebDAV."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from types import SimpleNamespace

import pytest
import yaml

import lakeside
from itwin_nb.core.errors import InputError, OutputError
from itwin_nb.core.files import sha256
from itwin_nb.lake.identity import read_token
from itwin_nb.lake.lake import Lake
from itwin_nb.lake.sites import BLOCK, Refused, Unreachable
from itwin_nb.lake.xrootd import XRootD
from test_lake_faults import Relay, Server

pytestmark = pytest.mark.lake
MB = 10**6
SIZE = 60 * MB + 7


@cache
def token(user):
    return lakeside.signed_token(user)


def site_at(url, user="producer", **options):
    """Return the site of a WebDAV address, reached by XRootD's protocol."""
    return XRootD(url.replace("davs", "roots"), read_token(token(user)), lakeside.lake()["authority"], **options)


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.end()


@pytest.fixture
def scene(tmp_path, monkeypatch, server):
    """A lake with two sites, `near` behind a relay by roots:// and `far` by davs://, and a file of this machine."""
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "OIDC_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.clear()
    relay, here = Relay(server), lakeside.lake()
    places = {"near": relay.url, "far": here["sites"]["SITE-B"]}
    (tmp_path / "lake.yaml").write_text(yaml.safe_dump({"sites": places, "authority": here["authority"]}, sort_keys=False))
    (tmp_path / "source").write_bytes(os.urandom(SIZE))

    def lake_of(user):
        lake = Lake(tmp_path, token(user))
        lake.sites["near"] = site_at(relay.url, user)
        return lake

    name = f"test:{os.urandom(6).hex()}"
    yield SimpleNamespace(folder=tmp_path, relay=relay, lake_of=lake_of, lake=lake_of("producer"), name=name)
    relay.close()


def get(scene, user="producer"):
    target = scene.folder / "got"
    scene.lake_of(user).get(scene.name, target)
    return sha256(target) == sha256(scene.folder / "source")


def test_put_replicate_get_verify_delete(scene, server):
    lake = scene.lake
    lake.put(scene.folder / "source", scene.name, "near", {"beta": 6.0})
    lake.replicate(scene.name, "far")
    assert lake.verify(scene.name) == {"near": "good", "far": "good"}
    assert get(scene, "reader")
    server.files[0].write_bytes(b"damaged")
    assert lake.verify(scene.name) == {"near": "repaired", "far": "good"}
    assert sha256(server.files[0]) == lake.catalog.entry(scene.name).sha256
    lake.delete(scene.name)
    assert server.files == []


def test_reader_is_refused(scene, server):
    with pytest.raises(Refused, match="needs the scope storage.modify:/lattice"):
        scene.lake_of("reader").put(scene.folder / "source", scene.name, "near")
    scene.lake.put(scene.folder / "source", scene.name, "near")
    with pytest.raises(Refused, match="doesn't let you delete"):
        scene.lake_of("reader").delete(scene.name)
    with pytest.raises(Refused, match="needs the scope storage.read:/lattice"):
        get(scene, "outsider")
    assert len(server.files) == 1 and get(scene, "reader")


def test_missing_file(scene, server):
    scene.lake.put(scene.folder / "source", scene.name, "near")
    server.files[0].unlink()
    with pytest.raises(InputError, match="There is no file .*: the catalogue and the site disagree"):
        get(scene)
    assert scene.lake.verify(scene.name, repair=False) == {"near": "missing"}


@pytest.mark.parametrize("offset", [1, 31, 59])
def test_killed_server_comes_back(scene, server, offset):
    scene.lake.put(scene.folder / "source", scene.name, "near")
    scene.relay.passed["down"] = 0

    def kill():
        server.kill()
        threading.Timer(0.4, server.start).start()

    scene.relay.at("down", offset * MB, kill)
    assert get(scene)
    assert SIZE < scene.relay.passed["down"] < 1.01 * SIZE + 5 * BLOCK


def test_connection_that_breaks_again_and_again(scene):
    scene.lake.put(scene.folder / "source", scene.name, "near")
    for offset in range(7 * MB, SIZE, 7 * MB):
        scene.relay.at("down", offset, scene.relay.cut)
    assert get(scene)
    assert scene.relay.events["down"] == []


def test_upload_that_breaks_off(scene, server):
    scene.relay.at("up", 20 * MB, scene.relay.cut)
    with pytest.raises(Unreachable, match="doesn't answer"):
        scene.lake.put(scene.folder / "source", scene.name, "near")
    assert scene.lake.find() == []
    lakeside.wait_until(lambda: server.files == [])
    scene.lake.put(scene.folder / "source", scene.name, "near")


def test_server_that_hangs(scene, server):
    site = site_at(scene.relay.url, patience=2)
    site.write("d/a", [b"a"], 1)
    server.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    try:
        with pytest.raises(Unreachable, match="doesn't answer .*expired"):
            site.size("d/a")
        assert 1 < time.monotonic() - start < 8
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_full_site(scene):
    small = Server(space="24m")
    try:
        scene.lake.sites["near"] = site_at(f"davs://localhost:{small.port}/lattice")
        with pytest.raises(OutputError, match="no space left there; choose another site"):
            scene.lake.put(scene.folder / "source", scene.name, "near")
        assert small.files == [] and scene.lake.find() == []
    finally:
        small.end()


CLIENT = """
import os, sys
from pathlib import Path
from itwin_nb.core.errors import ItwinError
from itwin_nb.lake.identity import read_token
from itwin_nb.lake.sites import Folder
from itwin_nb.lake.xrootd import XRootD

url, authority, source, mine = sys.argv[1:]
site, source = XRootD(url, read_token(mine), authority), Path(source)
try:
    site.write("d/a", Folder(source.parent).read(source.name), source.stat().st_size)
    print("wrote", sum(map(len, site.read("d/a"))))
except ItwinError as error:
    print(error)
"""


def client(scene, user, **environment):
    """Let another process write and read a file."""
    url, authority = scene.relay.url.replace("davs", "roots"), lakeside.lake()["authority"]
    command = [sys.executable, "-c", CLIENT, url, authority, scene.folder / "source", token(user)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **streams)


def test_killed_client_leaves_nothing_in_the_way(scene, server):
    process = client(scene, "producer")
    scene.relay.at("up", 20 * MB, process.kill)
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert [path.name[:3] for path in server.files] == [".a."]  # until XRootD has waited for the client long enough
    assert client(scene, "producer").communicate(timeout=60)[0] == f"wrote {SIZE}\n"


def test_logs_have_no_token(scene):
    said, logs = client(scene, "producer", XRD_LOGLEVEL="Dump").communicate(timeout=60)
    assert said == f"wrote {SIZE}\n"
    assert "kXR_open" in logs and "REDACTED" in logs and "eyJ" not in logs


def test_token_of_the_environment_gives_no_rights(scene, server):
    said, _ = client(scene, "reader", BEARER_TOKEN=token("producer")).communicate(timeout=60)
    assert "needs the scope storage.modify:/lattice" in said and server.files == []
    said, _ = client(scene, "producer", BEARER_TOKEN=token("reader")).communicate(timeout=60)
    assert said == f"wrote {SIZE}\n"


def test_expired_token_of_the_environment_is_named(scene):
    expired = lakeside.signed_token("producer", exp=int(time.time()) - 60)
    said, _ = client(scene, "producer", BEARER_TOKEN=expired).communicate(timeout=60)
    assert "logs in with the token of your environment, not with yours" in said and "eyJ" not in said
