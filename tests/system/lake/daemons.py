"""Rucio's daemons that carry out rules, one after the other in one process: each works when the database has something for it.

Usage: daemons.py READY, a file that is made when they are at work
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import itwin_nb.lake.rucio.transfertool  # noqa: F401 -- makes the transfertool `tpc` known
from rucio.daemons.common import HeartbeatHandler
from rucio.daemons.conveyor.finisher import finisher
from rucio.daemons.conveyor.poller import poller
from rucio.daemons.conveyor.submitter import submitter
from rucio.daemons.judge import cleaner, evaluator, injector, repairer
from rucio.daemons.reaper import reaper
from rucio.daemons.undertaker import undertaker
from rucio.db.sqla.constants import DatabaseOperationType
from rucio.db.sqla.session import db_session
from sqlalchemy import text

NOW = "(now() AT TIME ZONE 'utc')"
PAUSE = 0.5  # seconds
REPAIR = 5  # seconds that a stuck rule rests


class Daemon(NamedTuple):
    work: str  # rows of Rucio's tables for which it's needed
    run: Callable[[HeartbeatHandler], None]


def transfer(_):
    """Submit what is queued, take what is done, and close it."""
    submitter(once=True, partition_wait_time=0)
    poller(once=True, older_than=0, partition_wait_time=0)
    finisher(once=True, partition_wait_time=0)


def reap(heart):
    """Delete replicas that no rule holds."""
    options = {"rses": [], "include_rses": None, "exclude_rses": None, "vos": None, "scheme": None}
    limits = {"chunk_size": 100, "delay_seconds": 0, "auto_exclude_threshold": 100, "auto_exclude_timeout": 1}
    reaper.run_once(**options, **limits, greedy=True, heartbeat_handler=heart)


DAEMONS = [
    Daemon("rules WHERE state = 'I'", lambda heart: injector.run_once(paused_rules={}, heartbeat_handler=heart)),
    Daemon(
        "updated_dids", lambda heart: evaluator.run_once(paused_dids={}, did_limit=100, heartbeat_handler=heart)
    ),
    Daemon("requests", transfer),
    Daemon(
        f"rules WHERE state = 'S' AND updated_at < {NOW} - interval '{REPAIR} s'",
        lambda heart: repairer.run_once(paused_rules={}, delta=-1, heartbeat_handler=heart),
    ),
    Daemon(
        f"rules WHERE expires_at < {NOW}",
        lambda heart: cleaner.run_once(paused_rules={}, heartbeat_handler=heart),
    ),
    Daemon(
        f"dids WHERE expired_at < {NOW}",
        lambda heart: undertaker.run_once(paused_dids={}, chunk_size=100, heartbeat_handler=heart),
    ),
    Daemon(f"replicas WHERE tombstone < {NOW} AND lock_cnt = 0", reap),
]
QUESTION = text("SELECT " + ", ".join(f"EXISTS (SELECT 1 FROM dev.{daemon.work})" for daemon in DAEMONS))


def needed():
    with db_session(DatabaseOperationType.READ) as session:
        answers = session.execute(QUESTION).one()
    return [daemon for daemon, has_work in zip(DAEMONS, answers, strict=True) if has_work]


def main():
    style = "%(asctime)s %(name)s %(levelname)s %(message)s"
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=style, force=True)
    with HeartbeatHandler("lake", 60) as heart:
        Path(sys.argv[1]).touch()
        while True:
            try:
                for daemon in needed():
                    daemon.run(heart)
            except Exception:
                logging.exception("A daemon failed")
            time.sleep(PAUSE)


main()
