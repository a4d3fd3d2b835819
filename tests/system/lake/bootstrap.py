"""Make Rucio's schema, accounts, sites and scope. Runs in Rucio's environment, with the settings in the environment."""

import os

from rucio.common.types import InternalAccount, InternalScope
from rucio.core.account import add_account, add_account_attribute
from rucio.core.account_limit import set_local_account_limit
from rucio.core.distance import add_distance
from rucio.core.identity import add_account_identity
from rucio.core.rse import add_protocol, add_rse, add_rse_attribute
from rucio.core.scope import add_scope
from rucio.db.sqla.constants import AccountType, DatabaseOperationType, IdentityType
from rucio.db.sqla.session import db_session
from rucio.db.sqla.util import build_database, create_base_vo, create_root_account

OURS = "itwin_nb.lake.rucio.protocol.Davs"
SHIPPED = "rucio.rse.protocols.webdav.Default"
PORTS = {"SITE-A": os.environ["SITE_A_PORT"], "SITE-B": os.environ["SITE_B_PORT"]}
USERS = {"producer": "producer", "reader": "reader", "operator": "root"}
TERABYTE = 10**12


def main():
    build_database()
    create_base_vo()
    create_root_account()
    with db_session(DatabaseOperationType.WRITE) as session:
        fill(session)


def fill(session):
    accounts = {name: InternalAccount(name) for name in ("root", "producer", "reader")}
    for name in ("producer", "reader"):
        add_account(accounts[name], AccountType.USER, None, session=session)
    for user, account in USERS.items():
        identity = f"SUB={user}, ISS={os.environ['ISSUER']}"
        add_account_identity(
            identity, IdentityType.OIDC, accounts[account], f"{user}@localhost", default=True, session=session
        )
    add_account_attribute(accounts["producer"], "producer", True, session=session)
    add_scope(InternalScope("lattice"), accounts["producer"], session=session)
    sites = [add_site(name, port, session) for name, port in PORTS.items()]
    for site in sites:
        for name in ("root", "producer"):
            set_local_account_limit(accounts[name], site, TERABYTE, session=session)
    add_distance(*sites, distance=1, bidirectional=True, session=session)


def add_site(name, port, session):
    site = add_rse(name, session=session)
    add_protocol(site, protocol("davs", OURS, port, 1, copies=1), session=session)
    add_protocol(site, protocol("https", SHIPPED, port, 2, copies=None), session=session)
    for attribute in ("oidc_support", "greedyDeletion"):
        add_rse_attribute(site, attribute, True, session=session)
    return site


def protocol(scheme, implementation, port, rank, copies):
    use = {"read": rank, "write": rank, "delete": rank}
    wide = {**use, "third_party_copy_read": copies, "third_party_copy_write": copies}
    return {
        "hostname": "localhost",
        "scheme": scheme,
        "port": int(port),
        "prefix": "/lattice/",
        "impl": implementation,
        "domains": {"lan": use, "wan": wide},
        "extended_attributes": None,
    }


main()
