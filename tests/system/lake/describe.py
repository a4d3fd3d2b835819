"""Write lake.json: where everything is. Usage: describe.py STATE"""

import json
import sys
from pathlib import Path

from itwin_nb.core.files import write_json

STATE = Path(sys.argv[1])
SCOPES = "openid profile offline_access wlcg.groups eduperson_entitlement"
STORAGE = "storage.read:/lattice storage.modify:/lattice storage.create:/lattice"


def main():
    settings = dict(line.split("=", 1) for line in (STATE / "settings").read_text().splitlines())
    (key,) = json.loads((STATE / "provider/jwks.json").read_text())["keys"]

    def place(server):
        return f"localhost:{settings[f'{server}_PORT']}"

    lake = {
        "authority": str(STATE / "pki/ca.crt"),
        "issuer": settings["ISSUER"],
        "client": "lake-cli",
        "short_client": "lake-short",
        "agent_client": "lake-agent",
        "agent_secret": settings["SECRET"],
        "audience": settings["AUDIENCE"],
        "scopes": f"{SCOPES} {STORAGE}",
        "rucio": f"https://{place('RUCIO')}",
        "accounts": {"producer": "producer", "reader": "reader", "operator": "root"},
        "sites": {"SITE-A": f"davs://{place('SITE_A')}/lattice", "SITE-B": f"davs://{place('SITE_B')}/lattice"},
        "apache": f"https://{place('APACHE')}/lattice",
        "wsgidav": f"https://{place('WSGIDAV')}/lattice",
        "signing_key": str(STATE / "idp/key.pem"),
        "kid": key["kid"],
        "logs": str(STATE / "log"),
        "pids": {path.stem: int(path.read_text()) for path in sorted((STATE / "run").glob("*.pid"))},
    }
    write_json(STATE / "lake.json", lake)


main()
