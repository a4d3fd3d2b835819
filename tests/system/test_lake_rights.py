"""Who may do what: 7 kinds of users, 5 actions, 3 servers; a refusal says why, and changes nothing."""

import logging
import os
import re
import tempfile
import time
import traceback
from functools import cache
from types import SimpleNamespace

import pytest
import yaml

import lakeside
from itwin_nb.lake.lake import Lake
from itwin_nb.lake.sites import Refused, Unreachable

pytestmark = pytest.mark.lake
SERVERS = ["XRootD", "Apache", "wsgidav"]
ACTIONS = ["list", "read", "write", "delete", "replicate"]
USERS = ["producer", "reader", "outsider", "anonymous", "expired", "wrong-audience", "tampered"]
ALLOWED = {"producer": ACTIONS, "reader": ["list", "read"]}
ELSEWHERE = "https://elsewhere.example.org"


@cache
def token(user):
    """Return what a user sends: what the provider gave a person, or something that isn't good enough."""
    if user in lakeside.RIGHTS:
        return lakeside.device_token(user)["access_token"]
    return {
        "anonymous": lambda: "",
        "expired": lambda: lakeside.signed_token("producer", exp=int(time.time()) - 60),
        "wrong-audience": lambda: lakeside.signed_token("producer", aud=ELSEWHERE),
        "tampered": lambda: lakeside.tampered(token("producer")),
    }[user]()


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """Have no token but those of the test."""
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "OIDC_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def listed(site, folder):
    """Return the names in a folder of a site."""
    answer = site._ask("PROPFIND", folder, headers={"Depth": "1"}, good=(404,))
    paths = re.findall(r"<[^<>]*href>([^<]*)<", answer.text) if answer.ok else []
    return {path.rstrip("/").rpartition("/")[2] for path in paths} - {folder}


@pytest.fixture
def scene(tmp_path):
    """A lake of all servers, with a folder that only this test uses; in it a file at each server."""
    here = lakeside.lake()
    places = {
        "XRootD": here["sites"]["SITE-A"],
        "Apache": here["apache"],
        "wsgidav": here["wsgidav"],
        "source": here["sites"]["SITE-B"],
    }
    (tmp_path / "lake.yaml").write_text(yaml.safe_dump({"sites": places, "authority": here["authority"]}))
    folder, content = f"rights-{os.urandom(5).hex()}", os.urandom(100_003)
    (tmp_path / "file").write_bytes(content)
    owner = Lake(tmp_path, token("producer"))
    for site in owner.sites.values():
        site.write(f"{folder}/old", [content], len(content))
    yield SimpleNamespace(tmp_path=tmp_path, owner=owner, folder=folder, content=content)
    for site in owner.sites.values():
        for name in listed(site, folder):
            site.delete(f"{folder}/{name}")
        site.delete(folder)


def act(scene, lake, server, action):
    """Do something at a server; return the name of the file that is new there."""
    site, folder, content = lake.sites[server], scene.folder, scene.content
    if action == "list":
        assert listed(site, folder) == {"old"}
    elif action == "read":
        assert site.size(f"{folder}/old") == len(content)
        assert b"".join(site.read(f"{folder}/old")) == content
    elif action == "write":
        site.write(f"{folder}/new", [content], len(content))
        return "new"
    elif action == "delete":
        site.delete(f"{folder}/old")
    else:
        lake.replicate(f"{folder}:file", server)
        return lake.catalog.entry(f"{folder}:file").replicas[server].removeprefix(f"{folder}/")


def knock(scene, lake, server, action):
    """Ask a server straight out, as someone with bad intentions would."""
    site, old, new = lake.sites[server], f"{scene.folder}/old", f"{scene.folder}/new"
    remote = {"Source": lake.sites["source"]._address(old)}
    local = {"Destination": site._address(new)}
    requests = {
        "list": [("PROPFIND", scene.folder, {"Depth": "1"})],
        "read": [("GET", old, {}), ("HEAD", old, {})],
        "write": [("PUT", new, {}), ("PUT", old, {}), ("MKCOL", new, {})],
        "delete": [("DELETE", old, {}), ("DELETE", scene.folder, {}), ("MOVE", old, local)],
        "replicate": [("COPY", new, remote) if server == "XRootD" else ("COPY", old, local)],
    }
    for method, path, headers in requests[action]:
        body = {"data": b"evil"} if method == "PUT" else {}
        with pytest.raises((Refused, Unreachable)):  # XRootD may hang up before it has said no to a PUT
            site._ask(method, path, headers=headers, **body)


def reasons(user, action):
    """Return what a refusal has to say."""
    issuer = lakeside.lake()["issuer"]
    if user in ("reader", "outsider"):
        scope = f"storage.{'read' if action in ('list', 'read') else 'modify'}:/lattice"
        groups = ", ".join(lakeside.GROUPS[user])
        return [f"needs the scope {scope}", f"groups: {groups}", "ask the managers", f"at {issuer}"]
    return {
        "anonymous": ["no token", "log in with `itwin lake login`"],
        "expired": ["your token expired", "log in again"],
        "wrong-audience": ["ask its operators", "issuer", "audience"],
        "tampered": ["ask its operators", "issuer", "audience"],
    }[user]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("user", USERS)
def test_rights(user, server, action, scene, caplog):
    caplog.set_level(logging.DEBUG)
    name, owner = f"{scene.folder}:file", scene.owner
    if action == "replicate":
        owner.put(scene.tmp_path / "file", name, "source")
    sources = listed(owner.sites["source"], scene.folder)
    lake = Lake(scene.tmp_path, token(user))
    if action in ALLOWED.get(user, []):
        new = act(scene, lake, server, action)
        left = {"old"} - ({"old"} if action == "delete" else set())
        said = ""
    else:
        with pytest.raises(Refused) as refused:
            act(scene, lake, server, action)
        knock(scene, lake, server, action)
        new, left = None, {"old"}
        said = str(refused.value)
        assert [words for words in reasons(user, action) if words not in said] == []
        assert said.startswith(owner.sites[server].url) and said.endswith(".") and ". " not in said
        assert action != "replicate" or set(owner.catalog.entry(name).replicas) == {"source"}
        said += "".join(traceback.format_exception(refused.value))
    assert listed(owner.sites[server], scene.folder) == left | ({new} if new else set())
    assert listed(owner.sites["source"], scene.folder) == sources
    for path in filter(None, [new, *left]):
        assert b"".join(owner.sites[server].read(f"{scene.folder}/{path}")) == scene.content
    assert "eyJ" not in f"{said}{caplog.text}{lake!r}{lake.sites}{lake.identity!r}{lake.identity()}"


@pytest.mark.parametrize("server", SERVERS)
def test_refused_upload_at_the_top_of_a_site(server, scene):
    """No folder has to be made there: the file itself is refused, when its bytes are on the way already."""
    site, size = Lake(scene.tmp_path, token("reader")).sites[server], 3_000_000
    with pytest.raises(Refused, match="needs the scope storage.modify:/lattice"):
        site.write(scene.folder.replace("rights", "top"), [bytes(size)], size)
