"""Every bound and every timeout of the protocol, in one place, with asserts on how they relate.

Times are milliseconds of a monotonic clock. Sizes are bytes.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 2

# --- sizes ---------------------------------------------------------------------------------------------------------
ENVELOPE_BYTES_MAX: Final = 64 * 1024
"""One signed statement. Gossip refuses more, so no statement may be larger."""
FRAME_BYTES_MAX: Final = 256 * 1024
"""One frame of a link: the largest direct message."""
MESSAGE_STATEMENTS_MAX: Final = 1024
OFFER_BYTES_MAX: Final = 192 * 1024
"""How much one `offer` carries: a frame less its framing, with room for one more envelope."""
TEXT_MAX: Final = 256
DESCRIPTION_MAX: Final = 4096
PATH_MAX: Final = 255
LOG_TAIL_MAX: Final = 2048
COMMAND_MAX: Final = 64
ENV_MAX: Final = 64
TAGS_MAX: Final = 16
INPUTS_MAX: Final = 256
OUTPUT_FILES_MAX: Final = 64
CHECKPOINT_FILES_MAX: Final = 64
ADDRS_MAX: Final = 16
GPUS_MAX: Final = 16
EXECUTORS_MAX: Final = 8
CHUNK_BYTES: Final = 1024 * 1024
"""A blob is hashed and moved in pieces of this size."""
BLOB_BYTES_MAX: Final = 1 << 40
MODULE_BYTES_MAX: Final = 96 * 1024 * 1024
"""A wasm module, with the data that it carries. It is compiled in memory that no task was granted, and is there four
times meanwhile. Whole interpreters have some tens of MiB; more data than that is an input."""
LAYERS_MAX: Final = 127
"""Layers of a container image: what engines take."""
IMAGE_NAME_MAX: Final = 512
REGISTRIES_MAX: Final = 16
SPLIT_ENTRY_BYTES: Final = 12
"""One entry of a split's index: u64 offset, u32 length."""
PIDS_MAX: Final = 1024

# --- the shape of a job --------------------------------------------------------------------------------------------
STEWARDS: Final = 3
"""K: how many peers keep a shard."""
SHARD_TASKS: Final = 256
TASKS_MAX: Final = 1_000_000
REPLICAS_MAX: Final = 16
BID_TASKS_MAX: Final = 32
LEASES_PER_PEER_MAX: Final = 64
"""Outstanding leases of one worker on one shard, as one steward counts them: what a hoarder can hold."""

BIDS_PER_PEER_MAX: Final = 2 * SHARD_TASKS
"""Bids of one worker on one shard that are kept; a new one pushes out its oldest that came to nothing."""

# --- tables of one node --------------------------------------------------------------------------------------------
CHECKPOINTS_PER_TASK_MAX: Final = 4
"""Checkpoints of one task that a steward keeps: those of the workers that are furthest."""
PROFILES_MAX: Final = 20_000
JOBS_MAX: Final = 10_000
SHARDS_MAX: Final = 10_000
STATEMENTS_PER_SHARD_MAX: Final = SHARD_TASKS * REPLICAS_MAX * 4
PENDING_MAX: Final = 512
"""Statements kept that arrived before what they answer."""
JOBS_PER_AUTHOR_PER_MINUTE: Final = 60

# --- times ---------------------------------------------------------------------------------------------------------
LEASE_TTL_MS: Final = 60_000
RENEW_MS: Final = 20_000
LOST_LINK_MS: Final = 10_000
"""What is left of the leases of a worker whose link broke, unless it comes back and renews them."""
LATE_MIN_MS: Final = 10_000
LATE_FACTOR: Final = 3
"""A task is late when it has been leased for so long, and for so many times as long as the shard's others took: when
nothing else is left to do, one more worker may have it."""
RETRY_MIN_MS: Final = 1_000
"""First repetition of something no steward has answered; doubles up to RENEW_MS."""
BID_ANSWER_MS: Final = 3_000
"""How long a worker waits for the grants of a bid before it gives the bid up."""
BID_STEP_MS: Final = 60
"""d of the bid delay: about one gossip hop."""
POLL_MS: Final = 3_000
"""How often a worker with nothing to do asks stewards what is open."""
POLL_MAX_MS: Final = 30_000
STEWARD_SYNC_MS: Final = 5_000
PROFILE_MS: Final = 60_000
PROFILE_PER_PEER_MS: Final = 500
"""The profile period is max(PROFILE_MS, PROFILE_PER_PEER_MS * peers): under 2 profile messages a second overall."""
PROFILE_MISSED_ROUNDS: Final = 3
ANNOUNCE_MS: Final = 60_000
PEER_SYNC_MS: Final = 180_000
SUSPECT_MS: Final = 20_000
"""A peer that could not be reached is not counted as live for so long, unless it speaks first."""
COLLECT_MS: Final = 2_000
"""How often a submitter asks a shard's stewards for what is settled."""
REVEAL_TTL_MS: Final = 60_000
"""A worker that does not reveal for so long, when asked to, is counted as having failed."""
FETCH_RETRY_MS: Final = 5_000
CHECKPOINT_MIN_MS: Final = 10_000
"""A steward takes in no more than one checkpoint of a worker and task in this time."""
RETENTION_MIN_MS: Final = 60_000
RETENTION_DEFAULT_MS: Final = 7 * 24 * 3_600_000
RETENTION_MAX_MS: Final = 90 * 24 * 3_600_000
WALL_MAX_MS: Final = 30 * 24 * 3_600_000
PENALTY_MAX: Final = 100
PENALTY_DECAY_MS: Final = 60_000
"""Every so often a peer's penalty points are halved."""

assert LEASE_TTL_MS >= 3 * RENEW_MS, "a lease must survive two lost renewals"
assert RETRY_MIN_MS < RENEW_MS
assert LOST_LINK_MS >= 5 * RETRY_MIN_MS, "a worker whose link is mended renews before its leases end"
assert BID_ANSWER_MS < LEASE_TTL_MS // 2, "a bid is settled long before its leases end"
assert REVEAL_TTL_MS >= LEASE_TTL_MS
assert ENVELOPE_BYTES_MAX + OFFER_BYTES_MAX <= FRAME_BYTES_MAX, "one offer and one envelope fit a frame"
assert BID_TASKS_MAX <= LEASES_PER_PEER_MAX <= SHARD_TASKS
assert STEWARDS % 2 == 1, "a majority must exist"
