"""The shape of the database and how an older one is brought up to date. Text only: knows nothing of
connections.

`PRAGMA user_version` counts the migrations that a file has seen. A migration is never edited once released:
add one.
"""

from __future__ import annotations

from typing import TypeAlias

Migrations: TypeAlias = tuple[tuple[str, ...], ...]


MIGRATIONS: Migrations = (
    (
        # WITHOUT ROWID: one tree instead of two, so a commit writes fewer pages, and `load` reads in key
        # order.
        """CREATE TABLE records (
            kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
        ) WITHOUT ROWID""",
        """CREATE TABLE peers (
            peer_id TEXT NOT NULL PRIMARY KEY, addrs TEXT NOT NULL, last_seen_wall_ms INTEGER NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX peers_by_last_seen ON peers (last_seen_wall_ms)",
    ),
    (
        # What version 2 of the protocol kept means nothing to version 3: set aside, not deleted.
        "ALTER TABLE records RENAME TO records_of_protocol_2",
        """CREATE TABLE records (
            kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
        ) WITHOUT ROWID""",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)

UPSERT = """INSERT INTO records (kind, key, value) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET value = excluded.value"""
DELETE = "DELETE FROM records WHERE kind = ? AND key = ?"
LOAD_BUT = "SELECT kind, key, value FROM records WHERE kind NOT IN (SELECT value FROM json_each(?)) ORDER BY kind, key"
LOAD_PREFIX = "SELECT kind, key, value FROM records WHERE kind = ? AND key >= ? AND (? IS NULL OR key < ?) ORDER BY key"
COUNT_SET_ASIDE = "SELECT count(*) FROM records_of_protocol_2"
LOAD_KIND = "SELECT kind, key, value FROM records WHERE kind = ? ORDER BY key"

UPSERT_PEER = """INSERT INTO peers (peer_id, addrs, last_seen_wall_ms) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET addrs = excluded.addrs, last_seen_wall_ms = excluded.last_seen_wall_ms
    WHERE excluded.last_seen_wall_ms >= last_seen_wall_ms"""
TRIM_PEERS = """DELETE FROM peers WHERE peer_id IN (
    SELECT peer_id FROM peers ORDER BY last_seen_wall_ms DESC, peer_id LIMIT -1 OFFSET ?)"""
PEERS = "SELECT peer_id, addrs, last_seen_wall_ms FROM peers ORDER BY last_seen_wall_ms DESC, peer_id"
