"""A token from a real oidc-agent, which logs in once and renews by itself."""

import os
import re
import shutil
import signal
import subprocess
from threading import Thread

import pytest
from lakeside import approve, lake, wait_until

from itwin_nb.lake import Identity

pytestmark = [
    pytest.mark.lake,
    pytest.mark.skipif(shutil.which("oidc-agent") is None, reason="oidc-agent: tests/system/lake-up installs it"),
]
ACCOUNT = "itwin-test"


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """Start oidc-agent, and let a person log in to the test lake's provider."""
    here = lake()
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / ".oidc-agent").mkdir()
    said = subprocess.run(["oidc-agent", "--no-webserver"], capture_output=True, text=True, check=True).stdout
    monkeypatch.setenv("OIDC_SOCK", re.search(r"OIDC_SOCK=(\S+?);", said)[1])
    wait_until(lambda: not subprocess.run(["oidc-agent", "--status"], capture_output=True).returncode)
    options = {"iss": here["issuer"], "client-id": here["agent_client"], "client-secret": here["agent_secret"]}
    options |= {"flow": "device", "cp": here["authority"], "scope": here["scopes"], "pw-env": "PASSWORD"}
    command = ["oidc-gen", ACCOUNT, "--no-url-call", *(f"--{name}={value}" for name, value in options.items())]
    environment = os.environ | {"PASSWORD": "of the account"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as login:
        heard = []
        for line in login.stdout:
            heard.append(line)
            if found := re.search(r"(?<=enter the code: )\S+", line):
                Thread(target=approve, args=(f"{here['issuer']}/device?user_code={found[0]}", "reader")).start()
    assert login.returncode == 0, "".join(heard)
    yield ACCOUNT
    os.kill(int(re.search(r"OIDCD_PID=(\d+);", said)[1]), signal.SIGTERM)


def test_token_comes_from_the_agent(agent):
    token = Identity(agent=agent)()
    assert token.claims["sub"] == "reader" and token.seconds_left > 60
    assert Identity(agent="another")() is None
