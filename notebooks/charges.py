"""The database of consumer.py, a file of SQLite: what was charged, and who began what. Each function blocks, and is
called in a thread. They raise sqlite3.Error."""
import contextlib
import os
import sqlite3
import uuid

from service import number

DATABASE = os.environ.get("DATABASE", "charges.db")
TRIES = int(number("TRIES", "10", least=1))
ME = uuid.uuid4().hex                                        # this process
ROOM = 65536                                                 # bytes; more than an order takes
TABLES = """
    CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY NOT NULL, amount INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS tries (key TEXT, worker TEXT, PRIMARY KEY (key, worker));
    CREATE TABLE IF NOT EXISTS probe (room BLOB);"""


class NoOrder(Exception):
    """Will never be an order that can be charged; a person must look at it."""


@contextlib.contextmanager
def transaction():
    with contextlib.closing(sqlite3.connect(DATABASE, timeout=5)) as db, db:
        yield db


def prove():
    """Raises while nothing can be charged. On a full disk the first bytes may still find room, so it writes more, and
    frees it again. And it charges a made-up order the way that charge() does, and takes that back."""
    with transaction() as db:
        db.executescript(TABLES)
    with transaction() as db:
        take_room(db)
    with transaction() as db:
        db.execute("DELETE FROM probe")
        db.execute("SAVEPOINT made_up")
        apply(db, "probe", f"probe {ME}", 0)
        db.execute("ROLLBACK TO made_up")


def take_room(db):
    db.execute("INSERT INTO probe VALUES (zeroblob(?))", [ROOM])


def apply(db, key, name, amount):
    """Returns the amount that this order has been charged with, now or before."""
    db.execute("INSERT INTO charges VALUES (?, ?) ON CONFLICT DO NOTHING", [name, amount])
    [(charged,)] = db.execute("SELECT amount FROM charges WHERE id = ?", [name])
    db.execute("DELETE FROM tries WHERE key = ?", [key])
    return charged


def charge(key, name, amount):
    """The effect and its marker in one transaction: a second delivery changes nothing. Raises NoOrder if the id has
    been charged with another amount."""
    with transaction() as db:
        charged = apply(db, key, name, amount)
    if charged != amount:
        raise NoOrder(f"{name!a:.60} has been charged with {charged}, and comes again with {amount}")


def begin(key):
    """Notes, before it is tried, that this worker tries it: it may be what kills the workers. Where there is no room for
    the order it notes nothing either. Raises NoOrder after TRIES failures and deaths of other workers. (A worker dies
    once: however often it tries, it counts once.)"""
    with transaction() as db:
        [(others,)] = db.execute("SELECT count(*) FROM tries WHERE key = ? AND worker != ?", [key, ME])
        db.execute("INSERT OR IGNORE INTO tries VALUES (?, ?)", [key, ME])
        take_room(db)
    with transaction() as db:
        db.execute("DELETE FROM probe")
    if others >= TRIES:
        raise NoOrder(f"not charged in {TRIES} tries")


def failed(key):
    """Counts a try that failed by the order's own fault, in place of the note that begin() made of it."""
    with transaction() as db:
        db.execute("DELETE FROM tries WHERE key = ? AND worker = ?", [key, ME])
        db.execute("INSERT INTO tries VALUES (?, ?)", [key, uuid.uuid4().hex])


def came_back(key):
    """The try that begin() noted has ended, and by no fault of the order."""
    with transaction() as db:
        db.execute("DELETE FROM tries WHERE key = ? AND worker = ?", [key, ME])


def forget(key):
    """For an order that is in DEAD."""
    with transaction() as db:
        db.execute("DELETE FROM tries WHERE key = ?", [key])
