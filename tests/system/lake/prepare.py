"""Make what the parts of the lake need before they start: ports, keys, configurations. Usage: prepare.py STATE RUCIO"""

import json
import secrets
import socket
import sqlite3
import sys
import time
from base64 import urlsafe_b64encode
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from string import Template

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from itwin_nb.core.files import atomic_path

STATE, RUCIO = map(Path, sys.argv[1:])
TEMPLATES = Path(__file__).parent / "etc"
SERVERS = ["PROVIDER", "SITE_A", "SITE_B", "APACHE", "WSGIDAV", "RUCIO"]
MONTH = 30 * 86400  # seconds


def main():
    settings = settings_of(STATE / "settings")
    private, public = keys(STATE / "idp/key.pem")
    write(STATE / "provider/jwks.json", json.dumps({"keys": [private]}))
    for site in ("site-a", "site-b"):
        cache_key(STATE / site / "cache/scitokens/scitokens_cpp.sqllite", settings["ISSUER"], public)
    values = {**settings, "STATE": STATE, "RUCIO_CODE": rucio_code(), "KEY": json.dumps(public)}
    fill("provider-of-rucio.json", STATE / "server/etc/idpsecrets.json", values)
    for name in ("rucio.cfg", "alembic.ini"):
        fill(name, STATE / "server/etc" / name, values)
    fill("apache.conf", STATE / "apache/apache.conf", values)
    for site, port in (("site-a", settings["SITE_A_PORT"]), ("site-b", settings["SITE_B_PORT"])):
        for name in ("xrootd.cfg", "scitokens.cfg"):
            fill(name, STATE / site / name, {**values, "SITE": STATE / site, "PORT": port})


def settings_of(path):
    """Choose ports and a secret once; later return what was chosen."""
    if not path.exists():
        ports = {f"{name}_PORT": port for name, port in zip(SERVERS, free_ports(len(SERVERS)), strict=True)}
        issuer = f"https://localhost:{ports['PROVIDER_PORT']}"
        audience = "https://wlcg.cern.ch/jwt/v1/any"
        chosen = {**ports, "ISSUER": issuer, "AUDIENCE": audience, "SECRET": secrets.token_hex(16)}
        write(path, "".join(f"{name}={value}\n" for name, value in chosen.items()))
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def free_ports(number):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def keys(path):
    """Return the provider's signing key and its public half, both as JSON web keys."""
    if not path.exists():
        made = rsa.generate_private_key(65537, 2048)
        encoding, style = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        write(path, made.private_bytes(encoding, style, serialization.NoEncryption()).decode())
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    halves = [RSAAlgorithm.to_jwk(key, as_dict=True) for key in (private, private.public_key())]
    for half in halves:
        half.pop("key_ops")
        half.update(use="sig", alg="RS256", kid=thumbprint(halves[1]))
    return halves


def thumbprint(key):
    """Name a key after itself (RFC 7638)."""
    text = json.dumps({name: key[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
    return urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()


def cache_key(path, issuer, key):
    """Give XRootD the provider's key, which it would fetch only with a certificate of the system's authorities."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = int(time.time()) + MONTH
    known = {"jwks": {"keys": [key]}, "next_update": until, "expires": until}
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)"
        )
        database.execute("INSERT OR REPLACE INTO keycache VALUES (?, ?)", (issuer, json.dumps(known)))


def rucio_code():
    (code,) = RUCIO.glob("lib/python3*/site-packages/rucio")
    return code


def fill(template, path, values):
    write(path, Template((TEMPLATES / template).read_text()).substitute(values))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        part.write_text(text)
        part.chmod(0o600)


main()
