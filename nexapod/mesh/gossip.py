"""Gossip: two low-rate topics over GossipSub, validated before they are forwarded.

A hint, never the state: bursts, late joiners and partitions lose messages. Does not know what the messages say; the
daemon's `validate` judges them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from nexapod.mesh import containment
from nexapod.mesh.events import TOPICS, Gossip, MeshEvent, Topic, topic_name
from nexapod.mesh.library import ID, GossipSub, Pubsub, background_trio_service
from nexapod.protocol.errors import LocalError
from nexapod.protocol.limits import ENVELOPE_BYTES_MAX
from nexapod.protocol.types import PeerId

log = structlog.get_logger()

RPC_BYTES_MAX: Final = 512 * 1024
FORWARDER_RATE: Final = 50.0
"""Messages a second that one peer may forward to us, on average."""
FORWARDER_BURST: Final = 500.0
FORWARDERS_MAX: Final = 1024


class Buckets:
    """A token bucket a peer, for a bounded number of peers."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = trio.current_time) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: dict[str, tuple[float, float]] = {}

    def admit(self, peer: str) -> bool:
        """Take one token of `peer`. False when it has none left."""
        now = self._clock()
        level, seen = self._levels.pop(peer, (self._burst, now))
        level = min(self._burst, level + (now - seen) * self._rate)
        admitted = level >= 1.0
        self._levels[peer] = (level - 1.0 if admitted else level, now)
        if len(self._levels) > FORWARDERS_MAX:
            del self._levels[next(iter(self._levels))]
        return admitted


class Gossiper:
    """The two topics of one network on one host."""

    def __init__(
        self,
        host: Any,
        network: str,
        connections_max: int,
        emit: Callable[[MeshEvent], None],
        validate: Callable[[Topic, bytes], bool],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._emit = emit
        self._validate = validate
        self._own = host.get_id().to_base58()
        self._names = {topic: topic_name(network, topic) for topic in TOPICS}
        self._buckets = Buckets(FORWARDER_RATE, FORWARDER_BURST)
        router = GossipSub(
            protocols=["/meshsub/1.1.0"],
            degree=4,
            degree_low=3,
            degree_high=max(24, connections_max),  # nobody is ever pruned: a pruned peer can stay isolated
            heartbeat_interval=1,
            prune_back_off=5,
            spam_protection_enabled=False,  # its cap silently keeps our own publications from being forwarded
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._router = router
        self._pubsub = Pubsub(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=RPC_BYTES_MAX,
            allowed_topics=frozenset(self._names.values()),
        )
        containment.guard_pubsub(self._pubsub, self._admit)
        for topic, name in self._names.items():
            self._pubsub.set_topic_validator(name, self._validator(topic), True)

    def _admit(self, forwarder: str) -> bool:
        admitted = self._buckets.admit(forwarder)
        if not admitted:
            self.counts["rate_limited"] += 1
        return admitted

    def _validator(self, topic: Topic) -> Callable[[Any, Any], Any]:
        async def judge(forwarder: Any, message: Any) -> bool:
            """Never raises: the library would take the process down, or count it as the sender's fault."""
            await trio.lowlevel.checkpoint()
            if len(message.data) > ENVELOPE_BYTES_MAX or list(message.topicIDs) != [self._names[topic]]:
                self.counts["malformed"] += 1
                return False
            try:
                valid = bool(self._validate(topic, message.data))
            except Exception:
                self.counts["validator_errors"] += 1
                log.exception("gossip_validator_failed", topic=topic)
                return False
            if not valid:
                self.counts["invalid"] += 1
                log.info("gossip_rejected", topic=topic, forwarder=str(forwarder))
            return valid

        return judge

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve both topics until cancelled; started() once subscribed."""
        async with (
            background_trio_service(self._router),
            background_trio_service(self._pubsub),
            trio.open_nursery() as nursery,
        ):
            await self._pubsub.wait_until_ready()
            for topic, name in self._names.items():
                nursery.start_soon(self._drain, topic, await self._pubsub.subscribe(name))
            task_status.started()

    async def _drain(self, topic: Topic, subscription: Any) -> None:
        """Take messages as they come: the library drops what finds its queue full."""
        while True:
            message = await subscription.get()
            author = _peer_text(message.from_id)
            if author is None or author == self._own:
                continue
            self.counts["received"] += 1
            self._emit(Gossip(topic, author, bytes(message.data)))

    async def publish(self, topic: Topic, data: bytes) -> None:
        """Publish to all of the network, best effort. Raises LocalError above 64 KiB, which nobody would forward."""
        if len(data) > ENVELOPE_BYTES_MAX:
            raise LocalError(f"a gossip message holds at most {ENVELOPE_BYTES_MAX} bytes, not {len(data)}")
        self.counts["published"] += 1
        await self._pubsub.publish(self._names[topic], data)

    def renew(self, identity: Any) -> None:
        """Open a new gossip stream to a peer that is still connected: the old one may have ended with a connection."""
        self._pubsub._handle_dead_peer(identity)

    def mesh_size(self, topic: Topic) -> int:
        """How many peers this one exchanges the topic's messages with directly."""
        return len(self._router.mesh.get(self._names[topic], ()))


def _peer_text(raw: bytes) -> PeerId | None:
    return PeerId(ID(raw).to_base58()) if len(raw) <= 64 else None
