"""A site of one's own holds against clients that die, race, climb out or send too much, and against a full disk."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from select import select

import jwt
import pytest
import requests
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server
from cryptography.hazmat.primitives.asymmetric import ec

from itwin_nb.core.files import adler32
from itwin_nb.lake import serve
from itwin_nb.lake.serve import Policy, make_server

AUDIENCE = "https://wlcg.cern.ch/jwt/v1/any"
MIB = 1 << 20
RUN = """
import sys
from itwin_nb.lake.serve import make_server
server = make_server(sys.argv[1], sys.argv[2], port=0)
server.prepare()
print(server.bind_addr[1], flush=True)
server.serve()
"""


@contextmanager
def running(server):
    server.prepare()
    threading.Thread(target=server.serve, daemon=True).start()
    yield server.bind_addr[1]
    server.stop()


class Issuer:
    """An identity provider with a key that can be changed."""

    def __init__(self):
        self.rotate()

    def rotate(self):
        self.key, self.kid = ec.generate_private_key(ec.SECP256R1()), os.urandom(4).hex()

    def __call__(self, environ, start_response):
        algorithm = jwt.get_algorithm_by_name("ES256")
        public = {**json.loads(algorithm.to_jwk(self.key.public_key())), "kid": self.kid}
        found = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"keys": [public]} if environ["PATH_INFO"] == "/jwks" else found).encode()]

    def sign(self, scope="storage.read:/lattice storage.modify:/lattice"):
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "anna", "exp": time.time() + 3600, "scope": scope}
        return jwt.encode(claims, self.key, "ES256", headers={"kid": self.kid})


@pytest.fixture(scope="module")
def issuer():
    provider = Issuer()
    with running(Server(("127.0.0.1", 0), provider)) as port:
        provider.url = f"http://127.0.0.1:{port}"
        yield provider


class Site:
    """A server in a process of its own."""

    def __init__(self, issuer, folder, *wrapper):
        self.issuer, self.folder = issuer, folder
        command = [*wrapper, sys.executable, "-c", RUN, folder, issuer.url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def ask(self, method, path, data=None, token=None, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        bearer = {"Authorization": f"Bearer {token or self.issuer.sign()}"}
        url = f"http://127.0.0.1:{self.port}{path}"
        return requests.request(method, url, data=data, headers=bearer | named, timeout=60)

    def connect(self, *lines, token=None):
        """Begin a request; what stands in it is sent as it is."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = [*lines, "Host: x", f"Authorization: Bearer {token or self.issuer.sign()}", "", ""]
        connection.sendall("\r\n".join(head).encode())
        return connection

    def raw(self, *lines, **options):
        with self.connect(*lines, "Connection: close", **options) as connection:
            return connection.makefile("rb").read()

    def memory(self):
        """Highest use of memory so far, in MiB."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) / 1024

    def stop(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def site(issuer, tmp_path):
    (tmp_path / "served").mkdir()
    with closing_by(Site(issuer, tmp_path / "served")) as site:
        yield site


@contextmanager
def closing_by(site):
    try:
        yield site
    finally:
        site.stop()


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


SEND = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
time.sleep(600)
"""
BODIES = {
    "Content-Length: 3000000": b"0" * MIB,
    "Transfer-Encoding: chunked": b"100000\r\n" + b"0" * MIB + b"\r\n7\r\n012",
}


@pytest.mark.parametrize("length", BODIES)
def test_client_is_killed_while_it_sends(site, length):
    (site.folder / "A").write_text("old")
    head = f"PUT /lattice/A HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.issuer.sign()}\r\n{length}\r\n\r\n"
    client = subprocess.Popen([sys.executable, "-c", SEND, str(site.port)], stdin=subprocess.PIPE)
    client.stdin.write(head.encode() + BODIES[length])
    client.stdin.close()
    wait_for(lambda: sum(path.stat().st_size for path in site.folder.iterdir()) > MIB)
    assert len(names(site.folder)) == 2
    assert ".part" not in site.ask("PROPFIND", "/lattice", Depth="1").text
    client.kill()
    client.wait()
    wait_for(lambda: names(site.folder) == ["A"])
    assert (site.folder / "A").read_text() == "old"


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


def test_server_is_stopped_while_a_client_sends(issuer, tmp_path):
    port = free_port()
    call = f"from itwin_nb.lake import serve; serve.serve({str(tmp_path)!r}, {issuer.url!r}, port={port})"
    server = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    site = Site.__new__(Site)
    site.issuer, site.port = issuer, port
    wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    with site.connect("PUT /lattice/A HTTP/1.1", "Content-Length: 300000000") as connection:
        connection.sendall(b"0" * MIB)
        wait_for(lambda: names(tmp_path) and (tmp_path / names(tmp_path)[0]).stat().st_size >= MIB // 2)
        server.send_signal(signal.SIGTERM)
        while not select([connection], [], [], 0.05)[0]:
            connection.sendall(b"0" * 1000)
        answer = connection.recv(12)
    printed, _ = server.communicate(timeout=60)
    assert (answer, server.returncode, printed, names(tmp_path)) == (b"HTTP/1.1 503", 0, b"", [])


def test_port_that_is_taken_is_said(issuer, tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        call = f"from itwin_nb.lake import serve; serve.serve({str(tmp_path)!r}, {issuer.url!r}, port={port})"
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=60)
    assert f"UsageError: Cannot listen at 127.0.0.1:{port}" in done.stderr


def can_mount(folder):
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", folder]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0


def test_disk_is_full(issuer, tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("a small disk can be mounted by root only")
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    with closing_by(Site(issuer, tmp_path, "unshare", "-m", "bash", "-c", mount, tmp_path)) as site:
        inside = tmp_path.__class__(f"/proc/{site.process.pid}/root{tmp_path}")
        assert site.ask("PUT", "/lattice/A", b"1" * (5 * MIB)).status_code == 201
        assert site.ask("PUT", "/lattice/B", b"2" * MIB).status_code == 201
        for answer in (
            site.ask("PUT", "/lattice/B", b"3" * (20 * MIB)),
            site.ask("PUT", "/lattice/C", iter([b"4" * MIB] * 20)),
            site.ask("COPY", "/lattice/A", Destination="/lattice/B"),
            site.ask("COPY", "/lattice/A", Destination="/lattice/D"),
        ):
            assert (answer.status_code, answer.reason) == (507, "Insufficient Storage")
            assert "no space left here" in answer.text and str(tmp_path) not in answer.text
        assert names(inside) == ["A", "B"]
        assert (inside / "B").read_bytes() == b"2" * MIB


def put_new(site, content):
    return site.ask("PUT", "/lattice/A", content, If_None_Match="*").status_code


def put_with_create_only(site, content):
    token = site.issuer.sign("storage.read:/lattice storage.create:/lattice")
    return site.ask("PUT", "/lattice/A", content, token).status_code


def move_without_overwriting(site, content):
    part = f"/lattice/.{os.urandom(4).hex()}"
    assert site.ask("PUT", part, content).status_code == 201
    return site.ask("MOVE", part, Destination="/lattice/A", Overwrite="F").status_code


@pytest.mark.parametrize("write", [put_new, put_with_create_only, move_without_overwriting])
def test_one_of_twenty_writers_wins(site, write):
    contents = [bytes([n]) * (3 * MIB) for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda content: write(site, content), contents))
    assert statuses.count(201) == 1 and set(statuses) <= {201, 403, 412}
    assert (site.folder / "A").read_bytes() == contents[statuses.index(201)]


def test_reader_sees_one_version(site):
    versions = [bytes([n]) * (MIB + n) for n in range(4)]
    site.ask("PUT", "/lattice/A", versions[0])
    done = threading.Event()

    def replace(version):
        while not done.is_set():
            assert site.ask("PUT", "/lattice/A", version).status_code == 204

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(replace, version) for version in versions]
        try:
            answers = [site.ask("GET", "/lattice/A") for _ in range(100)]
        finally:
            done.set()
        [writer.result() for writer in writers]
    assert {answer.status_code for answer in answers} <= {200, 409}
    seen = [answer.content for answer in answers if answer.status_code == 200]
    assert len(seen) > 50 and all(content in versions for content in seen)


def send_all(connection, blocks):
    for block in blocks:
        connection.sendall(block)
    return connection.makefile("rb").read(12).decode()


def test_memory_is_bounded(site):
    block, count = os.urandom(MIB), 500
    with site.connect("PUT /lattice/A HTTP/1.1", f"Content-Length: {count * MIB}") as connection:
        assert send_all(connection, [block] * count) == "HTTP/1.1 201"
    with site.connect("PUT /lattice/B HTTP/1.1", "Transfer-Encoding: chunked") as connection:
        chunk = f"{count * MIB:x}\r\n".encode(), *[block] * count, b"\r\n0\r\n\r\n"
        assert send_all(connection, chunk) == "HTTP/1.1 201"
    assert (site.folder / "A").stat().st_size == (site.folder / "B").stat().st_size == count * MIB
    assert site.raw("GET /lattice/A HTTP/1.1").endswith(block)
    digest = site.ask("HEAD", "/lattice/B", Want_Digest="adler32").headers["Digest"]
    assert digest == f"adler32={adler32(site.folder / 'A')}"
    with site.connect("PUT /lattice/C HTTP/1.1", f"Content-Length: {count * MIB}", token="none") as connection:
        assert send_all(connection, [block] * count) == "HTTP/1.1 401"
    with site.connect("GET /lattice/A HTTP/1.1", "X: " + "x" * MIB) as connection:
        assert connection.recv(12) == b"HTTP/1.1 413"
    assert names(site.folder) == ["A", "B"]
    assert site.memory() < 200


def test_body_of_a_refused_request_is_no_request(site):
    (site.folder / "A").write_text("kept")
    hidden = f"DELETE /lattice/A HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.issuer.sign()}\r\n\r\n"
    for length in (f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked"):
        with site.connect("PUT /lattice/B HTTP/1.1", length, token="none") as connection:
            connection.sendall(hidden.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
        assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 401")
    assert names(site.folder) == ["A"]


UP = "..", "%2e%2e", ".%2e", "%2E.", "..%2f", "%2e%2e%2f", "%252e%252e", "..%5c", "..%00", "..%09", "..;"
UP += "%c0%ae%c0%ae", "a/../.."


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "MOVE", "COPY"])
def test_path_stays_inside(site, method):
    secret = site.folder.parent / "secret"
    secret.write_text("not for you")
    (site.folder / "a").mkdir()
    (site.folder / "B").write_text("b")
    for up in UP:
        path = f"/lattice/{up}secret" if up.endswith("f") else f"/lattice/{up}/secret"
        lines = [f"{method} {path} HTTP/1.1"]
        if method in ("MOVE", "COPY"):
            lines = [f"{method} /lattice/B HTTP/1.1", f"Destination: {path}"]
        answer = site.raw(*lines, *["Content-Length: 0"] * (method == "PUT"))
        assert re.match(b"HTTP/1.1 4..", answer), (up, answer)
        assert b"not for you" not in answer and str(site.folder).encode() not in answer
    assert secret.read_text() == "not for you"
    assert names(site.folder) == ["B", "a"]


def test_destination_stays_in_the_scope(site):
    (site.folder / "mine").mkdir()
    (site.folder / "theirs").mkdir()
    (site.folder / "mine" / "A").write_text("mine")
    token = site.issuer.sign("storage.read:/lattice storage.modify:/lattice/mine")
    cut = "theirs/A%3F/../../mine/B", "theirs/A?/../../mine/B", "mine/%3b/../../theirs/A"
    for way in (*(f"mine/{up}/theirs/A" for up in UP), *cut):
        answer = site.raw("COPY /lattice/mine/A HTTP/1.1", f"Destination: /lattice/{way}", token=token)
        assert re.match(b"HTTP/1.1 4..", answer), (way, answer)
    assert names(site.folder / "theirs") == []


def test_links_are_not_followed(site):
    outside = site.folder.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not for you")
    (site.folder / "file").symlink_to(outside / "secret")
    (site.folder / "folder").symlink_to(outside)
    (site.folder / "dangling").symlink_to(outside / "new")
    (site.folder / "A").write_text("a")
    os.mkfifo(site.folder / "pipe")
    for name in ("file", "folder/secret", "folder/new", "dangling"):
        for method in ("GET", "PUT", "DELETE", "MKCOL"):
            assert site.ask(method, f"/lattice/{name}", b"" if method == "PUT" else None).status_code == 403
        for method in ("COPY", "MOVE"):
            assert site.ask(method, "/lattice/A", Destination=f"/lattice/{name}").status_code == 403
    assert site.ask("GET", "/lattice/pipe").status_code == 404
    listed = site.ask("PROPFIND", "/lattice", Depth="1").text
    assert re.findall(r"<D:href>([^<]*)", listed, re.I) == ["/lattice/", "/lattice/A"]
    assert site.ask("DELETE", "/lattice/folder/").status_code == 403
    assert names(outside) == ["secret"] and (outside / "secret").read_text() == "not for you"


def test_new_key_of_the_issuer_is_found(issuer, monkeypatch):
    monkeypatch.setattr(serve, "_PAUSE", 1)
    policy = Policy(issuer.url, AUDIENCE, "/lattice", "/lattice/producers")
    assert policy.identify(f"Bearer {issuer.sign()}").claims["sub"] == "anna"
    old = issuer.sign()
    issuer.rotate()
    with pytest.raises(serve.DAVError, match="isn't signed with a key of"):
        policy.identify(f"Bearer {issuer.sign()}")
    time.sleep(1.1)
    assert policy.identify(f"Bearer {issuer.sign()}").claims["sub"] == "anna"
    with pytest.raises(serve.DAVError, match="isn't signed with a key of"):
        policy.identify(f"Bearer {old}")


def certificate(folder):
    """Write a certificate for 127.0.0.1, signed by itself, and its key."""
    files = folder / "own.crt", folder / "own.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1"]
    command = ["openssl", "req", "-x509", *curve, "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return map(str, files)


def status(policy, token):
    try:
        return policy.identify(f"Bearer {token}") and 200
    except serve.DAVError as refusal:
        return refusal.value


def test_issuer_is_known_by_its_certificate(tmp_path):
    own, key = certificate(tmp_path)
    provider = Issuer()
    server = Server(("127.0.0.1", 0), provider)
    server.ssl_adapter = BuiltinSSLAdapter(own, key)
    with running(server) as port:
        provider.url = f"https://127.0.0.1:{port}"
        groups = "/lattice", "/lattice/producers"
        assert status(Policy(provider.url, AUDIENCE, *groups, authority=own), provider.sign()) == 200
        assert status(Policy(provider.url, AUDIENCE, *groups), provider.sign()) == 503
        assert status(Policy(f"{provider.url}/other", AUDIENCE, *groups, authority=own), provider.sign()) == 503


def test_no_token_in_a_log(issuer, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    good, tampered = issuer.sign(), issuer.sign()[:-4] + "AAAA"
    site = Site.__new__(Site)
    site.issuer, site.folder = issuer, tmp_path
    (tmp_path / "A").mkdir(mode=0o700)
    with running(make_server(tmp_path, issuer.url, port=0)) as site.port:
        for token in (good, tampered, "nonsense"):
            for method in ("GET", "PUT", "PROPFIND", "DELETE", "LOCK"):
                site.ask(method, f"/lattice/A/b?access_token={token}", token=token)
            site.ask("MOVE", "/lattice/A", token=token, Destination=f"https://{token}@x/lattice/B?authz={token}")
        with site.connect("PUT /lattice/B HTTP/1.1", "Transfer-Encoding: chunked") as connection:
            connection.sendall(b"no chunk\r\n")
            assert connection.recv(12) == b"HTTP/1.1 400"
        site.raw("GET /%ff HTTP/1.1")
    records = [record for record in caplog.records if not record.name.startswith("urllib3")]
    ours = "\n".join(map(caplog.handler.format, records))
    assert "127.0.0.1 anna GET /lattice/A/b 404" in ours
    for token in (good, tampered):
        assert not any(part in ours for part in token.split("."))


WRONG = ["", "Bearer", "Bearer ", "bearer x", "Basic YTpi", "Negotiate x", "Bearer a.b.c", "Bearer ...."]
WRONG += ["Bearer \xff\xfe", "Bearer " + "a" * 60_000, "Bearer e30.e30.e30", "Bearer bnVsbA.bnVsbA.bnVsbA"]
WRONG += ["Bearer W10.W10.", "Bearer eyJhbGciOltdfQ.e30.x"]


def test_whatever_is_no_token_is_refused(site):
    for header in WRONG:
        with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
            request = f"GET /lattice/A HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {header}\r\n\r\n"
            connection.sendall(request.encode("latin-1"))
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 401") and b'Bearer error="invalid_token"' in answer, (header, answer)
