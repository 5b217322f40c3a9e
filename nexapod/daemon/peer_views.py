"""Peers, their profiles and offers as the API shows them: reports of the core in, JSON values out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nexapod.protocol.report import NodeReport, PeerReport
from nexapod.protocol.types import Offer, Profile

LEASED: Final = ("granted", "running", "finished", "committed")
"""The states of an attempt in which this worker holds a lease."""


def node_facts(report: NodeReport) -> dict[str, Any]:
    """What the status says of the core."""
    return {
        "peer_id": report.peer,
        "network": report.network,
        "connected_peers": len(report.links),
        "known_peers": report.peers_known,
        "active_jobs": len(report.jobs),
        "leases": sum(attempt.state in LEASED for attempt in report.attempts),
        "steward_shards": report.steward_shards,
        "slots": 0 if report.profile is None else report.profile.slots,
        "state": "draining" if report.draining else "paused" if report.paused else "running",
    }


def peers_view(reports: Sequence[PeerReport]) -> list[dict[str, Any]]:
    """Every peer of the reports: those that are connected first, then by id."""
    return [_peer(report) for report in sorted(reports, key=lambda report: (not report.linked, report.peer))]


def _peer(report: PeerReport) -> dict[str, Any]:
    facts = {
        "peer_id": report.peer,
        "connected": report.linked,
        "dialled": report.dialled,
        "live": report.lately,
        "address": report.addr,
        "group": report.group,
        "steward": report.offers,
        "seen_up_s": report.seen_up_ms // 1000,
        "gone_s": None if report.gone_ms is None else report.gone_ms // 1000,
        "introducer": report.introducer,
    }
    return facts | (profile_view(report.profile) if report.profile is not None else {})


def profile_view(profile: Profile) -> dict[str, Any]:
    """A profile's facts."""
    return {
        "agent": profile.agent,
        "stamp": profile.stamp,
        "os": profile.os,
        "arch": profile.arch,
        "cpu_model": profile.cpu_model,
        "cpus": profile.cpus,
        "memory": profile.memory,
        "disk_free": profile.disk_free,
        "gpus": [
            {"model": g.model, "memory": g.memory, "capability": g.capability, "driver": g.driver} for g in profile.gpus
        ],
        "executors": [{"name": e.name, "version": e.version} for e in profile.executors],
        "images": list(profile.images),
        "registries": list(profile.registries),
        "addrs": list(profile.addrs),
        "reachable": profile.reachable,
        "slots": profile.slots,
    }


def offer_view(offer: Offer | None) -> dict[str, Any] | None:
    """What a peer would do as a steward; None: it would be none."""
    if offer is None:
        return None
    return {
        "addrs": list(offer.addrs),
        "storage": offer.storage,
        "shards": offer.shards,
        "until": offer.until,
        "reached_by": [seen.peer for seen in offer.reached],
    }
