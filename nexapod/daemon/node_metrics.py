"""A report of the core as metrics (see api/metrics.py). Pure."""

from __future__ import annotations

from collections import Counter

from nexapod.api.backend import Metric
from nexapod.protocol.report import NodeReport


def node_metrics(report: NodeReport) -> list[Metric]:
    """What a monitor should see of a node: whom it is linked to, what it does, how full its tables are."""
    tables = [({"table": table.name.replace(" ", "_")}, table) for table in report.tables]
    attempts = sorted(Counter(attempt.state for attempt in report.attempts).items())
    return [
        _gauge("connected_peers", "Peers with a link.", len(report.links)),
        _gauge("known_peers", "Peers that are known.", report.peers_known),
        _gauge("active_jobs", "Jobs known to be open.", len(report.jobs)),
        _gauge("submissions", "Jobs of this daemon's own user that are kept here.", len(report.submissions)),
        _gauge("stewardships", "Jobs that this peer is a steward of.", len(report.stewardships)),
        _gauge("steward_shards", "Shards that this peer keeps a seat of.", report.steward_shards),
        _gauge("slots", "Tasks that may run at once.", 0 if report.profile is None else report.profile.slots),
        Metric(
            "attempts",
            "gauge",
            "Tasks of this worker, by state.",
            [({"state": state}, count) for state, count in attempts],
        ),
        Metric(
            "table_entries",
            "gauge",
            "Entries of the core's bounded tables; of several alike the fullest.",
            [(labels, table.size) for labels, table in tables],
        ),
        Metric("table_entries_max", "gauge", "Their bounds.", [(labels, table.most) for labels, table in tables]),
    ]


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return Metric(name, "gauge", help_text, [({}, value)])
