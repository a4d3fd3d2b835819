"""What tests share on the lake that lake-up starts: where it is, and tokens of its users, true and false ones."""

import html
import json
import os
import re
import time
import uuid
from pathlib import Path
from urllib.parse import urljoin

import jwt
import requests

STATE = Path(os.environ.get("ITWIN_TEST_LAKE", "/var/tmp/itwin-lake"))
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
PAGES = 6  # at most, from the device's page over login and consent to the end
GROUPS = {"producer": ["/lattice", "/lattice/producers"], "reader": ["/lattice"], "outsider": ["/other"]}
READ = "openid profile wlcg.groups storage.read:/lattice"
RIGHTS = {
    "producer": f"{READ} storage.modify:/lattice storage.create:/lattice",
    "reader": READ,
    "outsider": "openid profile wlcg.groups",
}


def wait_until(question, seconds=90, pause=0.1):
    """Ask again and again until the answer is true."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "It doesn't come true."
        time.sleep(pause)


def lake():
    """Return what lake-up wrote in lake.json."""
    return json.loads((STATE / "lake.json").read_text())


def session():
    """Return a requests session that trusts the lake's authority, and nothing in the environment."""
    made = requests.Session()
    made.verify, made.trust_env = lake()["authority"], False
    return made


def ask_rucio(user, method, path, good=(200, 201), **options):
    """Send a request to Rucio's server as a user; return the answer, which has one of the good statuses."""
    headers = {"X-Rucio-Auth-Token": device_token(user)["access_token"]}
    answer = session().request(method, f"{lake()['rucio']}{path}", headers=headers, **options)
    if answer.status_code not in good:
        raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
    return answer


def form(page):
    """Return the address and the fields of the first form of a page; None if it has none."""
    found = re.search(r"<form.*?</form>", page.text, re.S | re.I)
    if not found:
        return None
    fields = [dict(re.findall(r'(\w+)="([^"]*)"', field)) for field in re.findall(r"<input[^>]*>", found[0])]
    action = re.search(r'action="([^"]*)"', found[0])
    address = urljoin(page.url, html.unescape(action[1])) if action else page.url
    return address, {field["name"]: html.unescape(field.get("value", "")) for field in fields if "name" in field}


def approve(uri, user):
    """Log in and agree at the provider's pages, as a person would with a browser."""
    browser = session()
    page = browser.get(uri)
    for _ in range(PAGES):
        if not (found := form(page)):
            break
        address, fields = found
        if "login" in fields:
            fields.update(login=user, password="any")
        page = browser.post(address, data=fields)
    if not page.ok or form(page):
        raise RuntimeError(f"{user} can't log in at {uri}: {page.status_code}")


def device_token(user, scopes=None, client=None):
    """Log in by the device flow; return the provider's whole answer (access_token, refresh_token, scope, expires_in …)."""
    here, web = lake(), session()
    places = web.get(f"{here['issuer']}/.well-known/openid-configuration").json()
    client = client or here["client"]
    wish = {"client_id": client, "scope": scopes or here["scopes"]}
    device = web.post(places["device_authorization_endpoint"], data=wish).json()
    approve(device["verification_uri_complete"], user)
    proof = {"client_id": client, "grant_type": DEVICE, "device_code": device["device_code"]}
    answer = web.post(places["token_endpoint"], data=proof)
    answer.raise_for_status()
    return answer.json()


def signed_token(user, **claims):
    """Sign a token as the provider does, with changes: `exp=` in the past, another `aud`, `scope` …"""
    here, now = lake(), int(time.time())
    usual = {
        "iss": here["issuer"],
        "aud": here["audience"],
        "sub": user,
        "client_id": here["client"],
        "scope": RIGHTS[user],
        "wlcg.ver": "1.0",
        "wlcg.groups": GROUPS[user],
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "jti": uuid.uuid4().hex,
    }
    headers = {"kid": here["kid"], "typ": "at+jwt"}
    return jwt.encode({**usual, **claims}, Path(here["signing_key"]).read_text(), "RS256", headers)


def tampered(token):
    """Change a token's claims and keep its signature."""
    head, _, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    return ".".join([head, jwt.encode({**claims, "sub": "root"}, None, "none").split(".")[1], signature])
