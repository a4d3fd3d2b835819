"""What may go wrong between a lake and its sites: one clear sentence, nothing half-written, nothing lost.

The servers are this module's own, with the configuration of the lake's: it kills them and fills their disks.
A relay before each counts what passes, and cuts the connection or does worse at a given byte.
"""

import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import lakeside
from itwin_nb.core.errors import InputError, ItwinError, OutputError, UsageError
from itwin_nb.core.files import sha256
from itwin_nb.lake.lake import Lake
from itwin_nb.lake.sites import BLOCK, Damaged, Refused, Taken, Unreachable

pytestmark = pytest.mark.lake
MB = 10**6
SIZE = 60 * MB + 7
PROGRAMS = {
    "xrootd": 'exec setpriv --reuid xrootd --regid xrootd --clear-groups xrootd -n fault -c "$1/xrootd.cfg"',
    "wsgidav": 'exec "$2" -c "$3" "$4"',
}
SERVE = "import json, sys; from itwin_nb.lake.serve import serve; serve(**json.loads(sys.argv[1]))"


def free_port():
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


class Server:
    """A storage element of this module's own; `space` as for mount's size= gives it a small disk."""

    def __init__(self, kind="xrootd", space=None):
        self.home = Path(tempfile.mkdtemp(prefix="itwin-faults-", dir="/var/tmp"))
        self.port, self.kind, self.space = free_port(), kind, space
        there, port = lakeside.STATE / "site-a", urlsplit(lakeside.lake()["sites"]["SITE-A"]).port
        for name in ("xrootd.cfg", "scitokens.cfg"):
            text = (there / name).read_text().replace(str(there), str(self.home))
            (self.home / name).write_text(text.replace(str(port), str(self.port)))
        shutil.copytree(there / "cache", self.home / "cache")
        shutil.copy(there / "host.key", self.home)
        (self.home / "data/lattice").mkdir(parents=True)
        (self.home / "admin").mkdir()
        shutil.chown(self.home, "xrootd", "xrootd")
        for path in self.home.rglob("*"):
            shutil.chown(path, "xrootd", "xrootd")
        self.start()

    def start(self):
        here, pki = lakeside.lake(), lakeside.STATE / "pki"
        options = {name: here[name] for name in ("issuer", "audience", "authority")}
        options |= {"certificate": str(pki / "host.crt"), "key": str(pki / "host.key")}
        options |= {"folder": f"{self.home}/data/lattice", "port": self.port}
        mount = f'mount -t tmpfs -o size={self.space} tmpfs "$1/data" && mkdir -m 777 "$1/data/lattice" && '
        shell = ["unshare", "-m", "bash", "-c", mount] if self.space else ["bash", "-c", ""]
        shell[-1] += PROGRAMS[self.kind]
        command = [*shell, "bash", self.home, sys.executable, SERVE, json.dumps(options)]
        environment = {**os.environ, "XDG_CACHE_HOME": f"{self.home}/cache"}
        with open(self.home / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.home, env=environment)
        lakeside.wait_until(self.answers)

    def answers(self):
        assert self.process.poll() is None, (self.home / "log").read_text()
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        self.kill()
        shutil.rmtree(self.home)

    @property
    def folder(self):
        """Where its files are; a disk of its own is seen by its process only."""
        seen = Path(f"/proc/{self.process.pid}/root") if self.space else Path("/")
        return seen / self.home.relative_to("/") / "data/lattice"

    @property
    def files(self):
        """Return all its files, hidden ones too."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def clear(self):
        for path in self.folder.iterdir():
            shutil.rmtree(path)


class Relay:
    """Stand between client and server: count bytes, and do something after so many of them."""

    def __init__(self, server):
        self.server, self.open, self.seconds = server, set(), 0.0
        self.visits, self.passed, self.events = 0, {"up": 0, "down": 0}, {"up": [], "down": []}
        self.door = socket.create_server(("127.0.0.1", 0))
        self.url = f"davs://localhost:{self.door.getsockname()[1]}/lattice"
        threading.Thread(target=self.accept, daemon=True).start()

    def at(self, way, offset, action):
        """Do something once, when so many bytes more have passed."""
        self.events[way].append((self.passed[way] + offset, action))

    def accept(self):
        with suppress(OSError):
            while True:
                client, _ = self.door.accept()
                self.visits += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self.server.port))
                except OSError:
                    client.close()
                    continue
                self.open |= {client, server}
                for way in (("up", client, server), ("down", server, client)):
                    threading.Thread(target=self.pass_on, args=way, daemon=True).start()

    def pass_on(self, way, source, target):
        with suppress(OSError):
            while block := source.recv(1 << 16):
                due = self.events[way][0][0] if self.events[way] else sys.maxsize
                now, later = block[: due - self.passed[way]], block[due - self.passed[way] :]
                target.sendall(now)
                time.sleep(self.seconds)
                self.passed[way] += len(now)
                if self.passed[way] == due:
                    self.events[way].pop(0)[1]()
                target.sendall(later)
                self.passed[way] += len(later)
        for one in (source, target):
            self.shut(one)
            one.close()
            self.open.discard(one)

    @staticmethod
    def shut(one):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Break all connections off."""
        for one in list(self.open):
            self.shut(one)

    def close(self):
        """Accept no connections any more either."""
        self.shut(self.door)
        self.door.close()
        self.cut()


@pytest.fixture(scope="module")
def servers():
    made = [Server(), Server()]
    yield made
    for server in made:
        server.end()


@pytest.fixture
def other(request):
    """A server of another kind, or with a small disk."""
    made = Server(*request.param)
    yield made
    made.end()


@cache
def token():
    return lakeside.device_token("producer")["access_token"]


def passing(seconds):
    """Return a token that wsgidav takes for some seconds more; it grants 10 s to slow clocks."""
    return lakeside.signed_token("producer", exp=int(time.time()) - 10 + seconds)


class Scene:
    """A lake with a folder of this machine, and two servers behind relays."""

    def __init__(self, folder, servers):
        self.folder, (self.near, self.far), self.name = folder, servers, "test:deep/er/file.bin"
        self.relays = {"near": Relay(self.near), "far": Relay(self.far)}
        self.source, self.out = folder / "file.bin", folder / "out"
        self.out.mkdir()
        self.lake = self.lake_of(token())

    def lake_of(self, token="", **settings):
        places = {name: relay.url for name, relay in self.relays.items()}
        places["here"] = str(self.folder / "here")
        described = {"sites": places, "authority": lakeside.lake()["authority"], **settings}
        (self.folder / "lake.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
        return Lake(self.folder, token)

    def make(self, size=SIZE):
        self.source.write_bytes(os.urandom(size))
        return self.source

    def put(self, *copies, size=SIZE):
        """Put a new file at `near`, and copies of it elsewhere."""
        self.lake.put(self.make(size), self.name, "near")
        for site in copies:
            self.lake.replicate(self.name, site)
        for relay in self.relays.values():
            relay.passed.update(up=0, down=0)

    def get(self, lake=None):
        return (lake or self.lake).get(self.name, self.out / "got")

    @property
    def entry(self):
        return self.lake.catalog.entry(self.name)

    def is_whole(self):
        """Say whether the file came, whole and alone."""
        return os.listdir(self.out) == ["got"] and sha256(self.out / "got") == self.entry.sha256

    def check(self, **servers):
        """Make sure that servers hold what the catalogue says and nothing else; no half a file is here."""
        entries = [self.lake.catalog.entry(name) for name in self.lake.find()]
        for site, server in ({"near": self.near, "far": self.far} | servers).items():
            here = [entry for entry in entries if site in entry.replicas]
            known = {server.folder / entry.replicas[site]: entry for entry in here}
            with suppress(AssertionError):
                lakeside.wait_until(lambda server=server, known=known: server.files == sorted(known), seconds=5)
            assert server.files == sorted(known)
            assert [path for path, entry in known.items() if sha256(path) != entry.sha256] == []
        assert [path for path in self.folder.rglob(".*") if path.name != "."] == []


@pytest.fixture
def scene(tmp_path, monkeypatch, servers):
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "OIDC_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for server in servers:
        server.clear()
    made = Scene(tmp_path, servers)
    yield made
    for relay in made.relays.values():
        relay.close()


@contextmanager
def fails(kind, *words, sentences=1):
    """Expect an error that says in one sentence (for each site) what was wrong and what to do."""
    with pytest.raises(ItwinError) as caught:
        yield
    said = str(caught.value)
    assert isinstance(caught.value, kind), said
    assert [word for word in words if word not in said] == [], said
    assert said[-1] in ".?" and said.count(". ") + said.count("? ") < sentences and "eyJ" not in said, said


# Downloads that break off


@pytest.mark.parametrize("offset", [1, 13, 29, 41, 50])
def test_killed_server_comes_back(scene, offset):
    scene.put()
    relay, again = scene.relays["near"], threading.Timer(0.4, scene.near.start)
    relay.at("down", offset * MB, lambda: (scene.near.kill(), again.start()))
    before = relay.visits
    scene.get()
    again.join()
    assert scene.is_whole() and relay.visits > before
    assert SIZE < relay.passed["down"] < 1.005 * SIZE + BLOCK
    scene.check()


def test_other_site_goes_on_where_the_first_broke_off(scene):
    scene.put("far")
    near, far = scene.relays["near"], scene.relays["far"]
    near.at("down", 20 * MB, lambda: (scene.near.kill(), near.close()))
    try:
        scene.get()
    finally:
        scene.near.start()
    assert scene.is_whole()
    assert near.passed["down"] < 21 * MB
    assert SIZE < near.passed["down"] + far.passed["down"] < 1.005 * SIZE + BLOCK
    scene.check()


def test_site_that_is_gone_for_good(scene):
    scene.put()
    relay, start = scene.relays["near"], time.monotonic()
    relay.at("down", 20 * MB, lambda: (scene.near.kill(), relay.close()))
    try:
        with fails(Unreachable, relay.url, "broke off at byte", f"of {SIZE}", "try again, or another site"):
            scene.get()
        assert time.monotonic() - start < 15
        with fails(Unreachable, relay.url, "doesn't answer", "can it be reached from here?"):
            scene.get()
    finally:
        scene.near.start()
    assert os.listdir(scene.out) == []
    assert not list((scene.folder / "cache").rglob("*.bin"))
    scene.check()


@pytest.mark.parametrize("step", [3 * MB, 700_000])
def test_connection_that_breaks_again_and_again(scene, step):
    scene.put()
    relay = scene.relays["near"]
    for offset in range(step, 20 * MB, step):
        relay.at("down", offset, relay.cut)
    scene.get()
    assert scene.is_whole()
    assert relay.events["down"] == []


def test_connection_that_never_brings_anything(scene):
    scene.put()
    relay = scene.relays["near"]
    for offset in range(10_000, 200_000, 10_000):
        relay.at("down", offset, relay.cut)
    with fails(Unreachable, relay.url, "broke off at byte 0"):
        scene.get()
    assert os.listdir(scene.out) == []


# Damaged, lost and withheld files


def flip(path):
    """Change a byte of a file so that its size and time stay."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(12_345)
        byte = file.read(1)[0]
        file.seek(12_345)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_damage_is_found_avoided_and_repaired(scene):
    scene.put("far", size=5 * MB)
    site, path = scene.lake.sites["near"], scene.entry.replicas["near"]
    scene.lake.sites["near"]._compare(path, scene.entry)  # XRootD keeps the checksum from now on
    flip(scene.near.files[0])
    site._compare(path, scene.entry)  # it's still said to be right
    scene.get()
    assert scene.is_whole()
    scene.far.kill()
    try:
        assert scene.lake.verify(scene.name) == {"near": "damaged", "far": "unreachable"}
        assert set(scene.entry.damaged) == {"near"} and set(scene.entry.replicas) == {"far"}
        with fails(Unreachable, scene.relays["far"].url):
            scene.get()
    finally:
        scene.far.start()
    scene.relays["near"].passed["down"] = 0
    scene.get()
    assert scene.relays["near"].passed["down"] == 0
    assert scene.lake.verify(scene.name) == {"near": "repaired", "far": "good"}
    assert set(scene.entry.replicas) == {"near", "far"} and not scene.entry.damaged
    scene.check()


def test_damaged_file_without_a_copy(scene):
    scene.put(size=5 * MB)
    flip(scene.near.files[0])
    with fails(Damaged, scene.name, "came damaged", scene.entry.adler32, "verify it"):
        scene.get()
    with fails(Damaged, scene.name, "came damaged"):
        scene.lake.get(scene.name)
    with fails(Damaged, scene.name, "came damaged"):
        scene.lake.replicate(scene.name, "far")
    assert os.listdir(scene.out) == [] and not list((scene.folder / "cache").rglob("*.bin"))
    assert scene.far.files == [] and set(scene.entry.replicas) == {"near"}


LOSSES = {
    "gone": (lambda path: path.unlink(), InputError, ["There is no file", "catalogue and the site disagree"]),
    "withheld": (lambda path: path.chmod(0), Refused, ["doesn't let you read", "ask its operators"]),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_copy_that_fails_after_a_good_answer(scene, loss, caplog):
    scene.put(size=5 * MB)
    lose, kind, words = LOSSES[loss]
    lose(scene.near.files[0])
    caplog.set_level(logging.DEBUG, "urllib3")
    with fails(kind, scene.relays["near"].url, *words):
        scene.lake.replicate(scene.name, "far")
    assert [line.split()[-2] for line in caplog.messages if '"COPY' in line] == ["201"]
    assert scene.far.files == [] and set(scene.entry.replicas) == {"near"}
    assert "eyJ" not in caplog.text


@pytest.mark.parametrize("loss", LOSSES)
def test_another_source_steps_in(scene, loss):
    scene.put("here", size=5 * MB)
    LOSSES[loss][0](scene.near.files[0])
    scene.lake.replicate(scene.name, "far")
    assert sha256(scene.far.files[0]) == scene.entry.sha256
    assert len(scene.far.files) == 1


def test_folders_are_made_and_bytes_go_from_site_to_site(scene):
    scene.put()
    scene.lake.replicate(scene.name, "far")
    assert scene.relays["near"].passed["down"] > SIZE  # to the other site
    assert sum(scene.relays["far"].passed.values()) < 30_000
    assert scene.entry.replicas["far"].startswith("test/deep/er/")
    scene.check()


# Full disks


def can_mount():
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="a small disk can't be mounted here")
FULL = {
    "xrootd": (Unreachable, ["is it up with space left"]),  # it hangs up without an answer
    "wsgidav": (OutputError, ["no space left there", "choose another site"]),
}


@needs_mount
@pytest.mark.parametrize("other", [(kind, "24m") for kind in PROGRAMS], ids=list(PROGRAMS), indirect=True)
def test_full_site(scene, other):
    kind, words = FULL[other.kind]
    scene.relays["far"].server = other
    with fails(kind, scene.relays["far"].url, *words):
        scene.lake.put(scene.make(), scene.name, "far")
    assert scene.lake.find() == []
    scene.check(far=other)
    scene.put()
    with fails(kind, scene.relays["far"].url, *words):
        scene.lake.replicate(scene.name, "far")
    assert set(scene.entry.replicas) == {"near"}
    scene.check(far=other)
    scene.lake.put(scene.make(MB), "test:small", "far")
    scene.check(far=other)


CLIENT = """
import sys
from itwin_nb.core.errors import ItwinError
from itwin_nb.lake.lake import Lake

try:
    lake = Lake(sys.argv[1])
    getattr(lake, sys.argv[2])(*sys.argv[3:])
    print("done")
except ItwinError as error:
    print(type(error).__name__, error)
"""


def client(folder, *words, disk="", before="true"):
    """Use a lake in another process; at `disk` it sees a new small disk, and bash does `before`."""
    mount = f"mount -t tmpfs -o size=4m tmpfs '{disk}' && " if disk else ""
    shell = [*(["unshare", "-m"] if disk else []), "bash", "-c", f'{mount}{before} && exec "$0" "$@"']
    command = [*shell, sys.executable, "-c", CLIENT, folder, *words]
    environment = {**os.environ, "BEARER_TOKEN": token()}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def said(process):
    return process.communicate(timeout=60)[0].strip()


@needs_mount
def test_no_space_for_what_comes(scene):
    scene.put()
    sentence = said(client(scene.folder, "get", scene.name, scene.out / "got", disk=scene.out))
    assert sentence.startswith(f"OutputError Cannot write {scene.out}/got: no space left on device; free")


@needs_mount
def test_folder_without_space(scene):
    disk = scene.folder / "here"
    disk.mkdir()
    sentence = said(client(scene.folder, "put", scene.make(5 * MB), scene.name, "here", disk=disk))
    assert sentence.startswith(f"OutputError Cannot write {disk}")
    assert "are free; choose another site" in sentence and scene.lake.find() == []


def test_folder_that_takes_a_part_only(scene):
    before = "ulimit -f 2000"  # KiB
    sentence = said(client(scene.folder, "put", scene.make(5 * MB), scene.name, "here", before=before))
    assert sentence.startswith("OutputError Cannot write") and "file too large; raise the limit" in sentence
    assert [path for path in (scene.folder / "here").rglob("*") if path.is_file()] == scene.lake.find() == []


# The catalogue's own disk


@needs_mount
def test_catalogue_that_cannot_be_written(scene):
    disk = scene.folder / "lake"
    disk.mkdir()
    before = f"cp '{scene.folder}'/lake.* '{disk}' && mount -o remount,ro '{disk}'"
    sentence = said(client(disk, "put", scene.make(MB), scene.name, "near", disk=disk, before=before))
    assert sentence.startswith(f"OutputError Cannot use the catalogue {disk}/lake.db")
    assert sentence.endswith("choose a place that can be written to, with space left.")
    assert scene.near.files == []


@needs_mount
def test_disk_of_the_catalogue_fills_up_during_an_upload(scene):
    disk = scene.folder / "lake"
    disk.mkdir()
    before = f"cp '{scene.folder}'/lake.* '{disk}'"
    process = client(disk, "put", scene.make(), scene.name, "near", disk=disk, before=before)

    def fill():
        with suppress(OSError), open(f"/proc/{process.pid}/root{disk}/other", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    scene.relays["near"].at("up", 20 * MB, fill)
    sentence = said(process)
    assert sentence.startswith(f"OutputError Cannot use the catalogue {disk}/lake.db") and "full" in sentence
    assert scene.near.files == []


# Tokens that expire


@pytest.fixture
def checking(servers):
    """A server that looks at each request's time; XRootD remembers for a minute what it once allowed."""
    made = Server("wsgidav")
    yield made
    made.end()


def test_what_was_begun_in_time_ends_well(scene, checking):
    scene.near = scene.relays["near"].server = checking
    scene.put()
    scene.relays["near"].seconds = 0.005
    lake, start = scene.lake_of(passing(3)), time.monotonic()
    scene.get(lake)
    assert time.monotonic() - start > 3 and scene.is_whole()
    with fails(Refused, "your token expired", "log in again"):
        scene.get(lake)
    scene.check()


@pytest.mark.parametrize("copies", [[], ["far"]], ids=["one-site", "two-sites"])
def test_token_expires_and_then_the_connection_breaks(scene, checking, copies):
    scene.near = scene.far = checking
    for relay in scene.relays.values():
        relay.server = checking
    scene.put(*copies)
    relay = scene.relays["near"]
    relay.seconds = 0.005
    relay.at("down", 50 * MB, relay.cut)
    lake, start = scene.lake_of(passing(3)), time.monotonic()
    with fails(Refused, "your token expired", "log in again", sentences=1 + len(copies)):
        scene.get(lake)
    assert time.monotonic() - start > 3 and os.listdir(scene.out) == []


def test_token_expires_during_an_upload(scene, checking):
    scene.near = scene.relays["near"].server = checking
    scene.relays["near"].seconds = 0.005
    with fails(Refused, "your token expired", "log in again"):
        scene.lake_of(passing(3)).put(scene.make(), scene.name, "near")
    assert scene.lake.find() == []
    assert [path.name for path in scene.near.files if not path.name.startswith(".")] == []
    scene.relays["near"].seconds = 0
    scene.lake.put(scene.source, scene.name, "near")


@pytest.mark.slow
def test_identity_renews_its_token_during_a_download(scene, checking):
    scene.near = scene.relays["near"].server = checking
    scene.put()
    here = lakeside.lake()
    settings = {"issuer": here["issuer"], "client": here["short_client"], "scopes": here["scopes"]}
    lake = scene.lake_of(identity=settings)
    first = lake.identity.login(lambda sentence: lakeside.approve(sentence.split()[1], "reader"))
    relay = scene.relays["near"]

    def outlive():
        time.sleep(max(0, first.seconds_left + 10.5))
        relay.cut()

    relay.at("down", 20 * MB, outlive)
    scene.get(lake)
    assert first.seconds_left < -10 and scene.is_whole()
    assert relay.passed["down"] < 1.005 * SIZE + BLOCK


# Several clients at once, and clients that die


def race(way, folder, token, path, name):
    """Do something with a lake at the same time as another process; say how it ended."""
    lake = Lake(folder, token)
    try:
        if way == "put":
            lake.put(path, name, "near")
        elif way == "write":
            content = path.read_bytes()
            lake.sites["near"].write(name.replace(":", "/"), [content], len(content))
        else:
            lake.replicate(name, "far")
        return path.name
    except ItwinError as error:
        return type(error), str(error)


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, get_context("spawn")) as made:
        yield made


def two(pool, scene, way, name):
    """Let two processes do the same, each with a file of its own."""
    paths = [scene.folder / "a", scene.folder / "b"]
    for path in paths:
        path.write_bytes(os.urandom(300_000))
    doing = [pool.submit(race, way, scene.folder, token(), path, name) for path in paths]
    return [one.result() for one in doing]


def only_loser(outcomes):
    lost = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
    assert len(lost) == 1, outcomes
    return lost[0]


def test_one_of_two_writers_wins(scene, pool):
    for number in range(25):
        name = f"race:{number}/a/b/c/file"
        outcomes = two(pool, scene, "put", name)
        kind, sentence = only_loser(outcomes)
        assert kind is UsageError and sentence == f"{name} is in the lake already: choose another name."
        (winner,) = set(outcomes) & {"a", "b"}
        assert scene.lake.catalog.entry(name).sha256 == sha256(scene.folder / winner)
    scene.check()


def test_one_of_two_writers_to_a_site_wins(scene, pool, checking):
    scene.relays["near"].server = checking
    for number in range(25):
        outcomes = two(pool, scene, "write", f"race:{number}/a/b/c/file")
        kind, sentence = only_loser(outcomes)
        assert kind is Taken and "choose another name" in sentence, sentence
        (winner,) = set(outcomes) & {"a", "b"}
        assert sha256(checking.folder / f"race/{number}/a/b/c/file") == sha256(scene.folder / winner)
    assert len(checking.files) == 25


def test_two_replicate_at_once(scene, pool):
    scene.put(size=MB)
    for number in range(10):
        name = f"race:{number}"
        scene.lake.put(scene.source, name, "near")
        two(pool, scene, "replicate", name)
        assert set(scene.lake.catalog.entry(name).replicas) == {"near", "far"}
    scene.check()


def putting(scene):
    return client(scene.folder, "put", scene.source, scene.name, "near")


def named(server):
    """Return the files that have their final names."""
    return [path for path in server.folder.rglob("[!.]*") if path.is_file()]


def again(scene):
    """Make sure that a client's death left nothing in the way."""
    known = scene.lake.find()
    if known:
        assert scene.lake.verify(scene.name) == {"near": "good"}
    else:
        assert said(putting(scene)) == "done"
    assert scene.entry.sha256 == sha256(scene.source)
    assert scene.lake.verify(scene.name) == {"near": "good"}
    return bool(known)


def test_client_killed_during_an_upload(scene):
    scene.make()
    process = putting(scene)
    scene.relays["near"].at("up", 30 * MB, process.kill)
    said(process)
    assert process.returncode == -9 and scene.lake.find() == [] and named(scene.near) == []
    assert not again(scene)


def test_client_killed_before_it_registers(scene):
    scene.make(MB)
    with closing(sqlite3.connect(scene.folder / "lake.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # so that it waits
        process = putting(scene)
        lakeside.wait_until(lambda: named(scene.near), pause=0.005)
        process.kill()
        said(process)
    assert scene.lake.find() == []
    assert not again(scene)


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8, 16])
def test_client_killed_when_it_registers(scene, milliseconds):
    scene.make(MB)
    process = putting(scene)
    lakeside.wait_until(lambda: named(scene.near), pause=0.005)
    time.sleep(milliseconds / 1000)
    process.kill()
    said(process)
    again(scene)


# Sources that change


def change(path):
    with open(path, "r+b") as file:
        file.seek(SIZE - 3 * MB)
        file.write(b"changed")


def grow(path):
    with open(path, "ab") as file:
        file.write(bytes(10 * MB))


def shrink(path):
    os.truncate(path, SIZE - 5 * MB)


@pytest.mark.parametrize("act", [change, grow, shrink])
@pytest.mark.parametrize("other", [(kind,) for kind in PROGRAMS], ids=list(PROGRAMS), indirect=True)
def test_source_changes_during_an_upload(scene, other, act):
    scene.relays["near"].server = other
    scene.relays["near"].at("up", 20 * MB, lambda: act(scene.source))
    with fails(InputError, str(scene.source), "changed"):
        scene.lake.put(scene.make(), scene.name, "near")
    assert scene.lake.find() == []
    scene.check(near=other)


def test_source_vanishes_before_the_upload(scene):
    scene.make()
    scene.relays["near"].at("up", 4000, scene.source.unlink)  # when folders are made
    with fails(InputError, f"There is no file {scene.source}"):
        scene.lake.put(scene.source, scene.name, "near")
    assert scene.lake.find() == []
    scene.check()
