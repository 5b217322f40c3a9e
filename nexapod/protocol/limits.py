"""Every bound and every timeout of protocol 3, in one place, with asserts on how they relate.

Times are milliseconds of a monotonic clock. Sizes are bytes.
"""

from __future__ import annotations

from typing import Final

# --- what jobs and profiles hold -------------------------------------------------------------------------------------
ADDRS_MAX: Final = 16
BLOB_BYTES_MAX: Final = 1 << 40
CHECKPOINT_FILES_MAX: Final = 64
CHUNK_BYTES: Final = 1024 * 1024
"""A blob is hashed and moved in pieces of this size."""
COMMAND_MAX: Final = 64
DESCRIPTION_MAX: Final = 4096
ENV_MAX: Final = 64
EXECUTORS_MAX: Final = 8
GPUS_MAX: Final = 16
IMAGE_NAME_MAX: Final = 512
INPUTS_MAX: Final = 256
LAYERS_MAX: Final = 127
"""Layers of a container image: what engines take."""
LOG_TAIL_MAX: Final = 2048
MODULE_BYTES_MAX: Final = 96 * 1024 * 1024
"""A wasm module, with the data that it carries. It is compiled in memory that no task was granted, and is there four
times meanwhile. Whole interpreters have some tens of MiB; more data than that is an input."""
OUTPUT_FILES_MAX: Final = 64
PATH_MAX: Final = 255
PIDS_MAX: Final = 1024
REGISTRIES_MAX: Final = 16
REPLICAS_MAX: Final = 16
SHARD_TASKS: Final = 256
SPLIT_ENTRY_BYTES: Final = 12
"""One entry of a split's index: u64 offset, u32 length."""
TAGS_MAX: Final = 16
TASKS_MAX: Final = 1_000_000
TEXT_MAX: Final = 256
WALL_MAX_MS: Final = 30 * 24 * 3_600_000

PROTOCOL_MAJOR: Final = 3
PROTOCOL_MINOR: Final = 0
"""A peer speaks every minor version up to its own: what it does not know of a newer one lies in extension slots."""

# --- sizes ---------------------------------------------------------------------------------------------------------
ENVELOPE_BYTES_MAX: Final = 64 * 1024
FRAME_BYTES_MAX: Final = 256 * 1024
MESSAGE_STATEMENTS_MAX: Final = 256
DELIVER_BYTES_MAX: Final = 192 * 1024
"""Envelopes in one Deliver: a frame less its framing, with room for one more envelope."""
EXTENSIONS_MAX: Final = 8
EXTENSION_BYTES_MAX: Final = 1024
NESTING_MAX: Final = 8
"""Arrays and maps inside one another in anything that is read: more than any table of the specification needs."""
OFFER_BYTES_MAX: Final = 1024
"""A stewardship offer's envelope, as a panel holds up to PANEL_MAX of them."""
SIGNATURES_MAX: Final = 64
"""Signatures of one cosigned statement: a whole panel's."""
REASON_MAX: Final = 512
"""Why something failed or was refused, for people."""

# --- the shape of a job --------------------------------------------------------------------------------------------
PANEL_MAX: Final = 64
PANEL_USUAL: Final = 16
PANEL_OUTPUT_BYTES: Final = 1024 * 1024
"""Of one task's outputs, by which a panel is sized: most tasks leave far less than their limit."""
SEATS: Final = 3
"""Stewards that hold one shard at a time."""
WITNESSES: Final = 2
"""Seats, where there are so many, that must say the same of who a worker is or that a job is here."""
ROSTER_MAX: Final = 256
"""Operator groups that one shard's tasks are drawn among: four times as many as are called for it, so that of a job of
many shards hardly anybody who was called is in no roster."""
CALLED_MAX: Final = 64
"""... and for how many for each of its shards a job calls workers."""
WORKERS_MAX: Final = 16_384
"""Workers that one job admits."""
ADMISSION_MAX: Final = 256
"""Workers that one round admits."""
ROUNDS_AHEAD_MAX: Final = 64
"""How much higher a round of admission may be than the last one heard of."""
ROUNDS_MAX: Final = 64
"""Rounds of freezing of one task."""
REACHED_MAX: Final = 4
WEIGHTS_MAX: Final = 64
CLAIM_TASKS_MAX: Final = 64
"""Tasks of one shard that one worker has to run at once; those that it has committed are not among them."""
CHECKPOINTS_PER_TASK_MAX: Final = 4
FREEZE_ENTRIES_MAX: Final = REPLICAS_MAX * 4
"""Commits of one task in a freeze."""
COUNTED_MAX: Final = 32
"""Groups whose results are counted in one judgement: those after them in the draw are not."""
AGREEING_PAIRS_MAX: Final = 512
EPOCHS_MAX: Final = 4_096
"""Successions of one shard, or renewals of one panel."""
DRAWN_MAX: Final = 16_384
"""Places in the rosters of one job's shards whose draws are kept; others are drawn again."""

# --- tables of one node --------------------------------------------------------------------------------------------
DIRECTORY_MAX: Final = 2_000
RELAYED_PER_FORWARDER_MAX: Final = 64
"""Peers in the directory that one operator group has told of, and that this node has never had a link to."""
SAMPLE_MAX: Final = 16
"""Profiles that two peers exchange at a time."""
JOBS_MAX: Final = 10_000
SHARDS_MAX: Final = 10_000
WORKERS_PER_GROUP_MAX: Final = 256
"""Workers of one operator group that one job admits: no group takes all places."""
BIDS_MAX: Final = 1_024
"""Standing bids of one job at one gate seat."""
CLAIMS_MAX: Final = 256
"""Standing claims of one shard at one seat."""
PENDING_MAX: Final = 256
"""Statements kept that arrived before what they answer, of one job."""
PROPOSALS_PER_SIGNER_MAX: Final = 32
"""Statements of one kind that do not count yet, of one shard, and that one peer has signed: its newest are kept."""
ADMISSIONS_MAX: Final = 4_096
"""Rounds of admission of one job."""
BEACONS_PER_ROUND_MAX: Final = 4
ADOPTIONS_MAX: Final = 64
"""Of one shard: what an epoch takes over fits many times."""
FAULTS_MAX: Final = 1_024
"""Peers of one job that are known to have signed two things of which they may sign one."""
FOUNDED_PER_SHARD_MAX: Final = 4_096
"""Freezes, and verdicts, of one shard that a quorum has signed: a round or two of each task fits many times."""
COMMITS_PER_TASK_MAX: Final = 64
"""Commits of one task that no freeze names: by the draw."""
COMMITS_PER_GROUP_MAX: Final = 4
"""... and of those of one operator group: by the worker's key."""
LINEAGE_MAX: Final = 64
"""Checkpoints of one task whose author is remembered, and how far a lineage is followed."""
REMEMBERED_MAX: Final = 4_096
REMEMBERED_BYTES_MAX: Final = 4_096
"""Signatures that were checked and envelopes that were read are remembered: so many, each of at most so many bytes."""

# --- admission: what a stranger may ask for -------------------------------------------------------------------------
JOBS_PER_AUTHOR_MAX: Final = 64
"""Open jobs of one submitter that a node keeps besides its own user's."""
JOBS_PER_AUTHOR_PER_MINUTE: Final = 20
JOBS_PER_LINK_PER_MINUTE: Final = 120
LINK_BYTES_PER_SECOND: Final = 4 * 1024 * 1024
LINK_BURST_BYTES: Final = 16 * 1024 * 1024
LINK_COST_PER_SECOND: Final = 200
"""Cost units (about a millisecond each) of answering one link that earns one per second; see node/admission.py."""
LINK_COST_BURST: Final = 2_000
ANSWER_FACTOR_MAX: Final = 16
"""No answer to an unproven peer is larger than so many times the question."""
ANSWER_FREE_BYTES: Final = 8 * 1024
"""... or this, if that is more."""

ACCOUNTS_MAX: Final = 4_096
"""Links, and authors of jobs, whose rates are kept; the one longest unused goes first."""
BANS_MAX: Final = 1_024
STEWARDSHIPS_MAX: Final = 1_024
"""Jobs of others that a node is a steward of at once."""
CARDS_MAX: Final = 1_024
"""Jobs that were announced here and whose bodies have been asked for."""
SOURCES_MAX: Final = 8
"""Peers that have announced one of them, and are asked one after the other."""
CARD_LINKS_MAX: Final = 8
"""Links that an announcement is passed on to: what chance leaves out, reconciling or the next announcement finds."""
CLOSING_LINKS_MAX: Final = 3
"""... and the end of a job: whoever has a part in it is told by its seats."""
JOB_RELAYS_PER_MINUTE: Final = 12
"""Announcements of one job that a node passes on; four times as many at once."""

EFFECTS_MAX: Final = 65_536
"""Effects of one call: its driver has all of them in memory. Nothing that a peer says leads to so many."""

# --- one submission ------------------------------------------------------------------------------------------------
SWEEP_MS: Final = 20
"""Between two looks at a submission's shards, of SHARDS_SWEPT each."""
SHARDS_SWEPT: Final = 64
"""Shards of a submission that one call looks at, of those that it must look at one after the other."""
COLLECTS_MAX: Final = 64
"""Shards that a submitter asks for news in one COLLECT_MS."""
SUCCESSIONS_MAX: Final = 64
"""Successions that a submitter signs in one COLLECT_MS."""
FETCHES_MAX: Final = 32
"""Outputs that one submission brings here at a time."""
DISPUTES_MAX: Final = 64
"""Failed tasks of one submission whose differing results are kept."""
DISPUTE_TRIES: Final = 3
"""How often a result that was not accepted is asked for before the job settles without it."""
WHOLE_SHARDS_MAX: Final = 64
"""Decided shards of one submission whose evidence stays in memory; of the others it lies on disk."""
DECIDED_KEPT_MAX: Final = 1_024
"""Decided tasks whose commits a worker can say again, in case the seats that decided them are all lost: its last."""
TASK_LOGS_MAX: Final = 256
"""Logs of running tasks that one submission keeps for people."""
FAILINGS_MAX: Final = 256
"""Results that did not end well, of one submission, that its user was told of and is not told of again."""
RATIFIED_MAX: Final = 256

# --- times ---------------------------------------------------------------------------------------------------------
BID_TTL_MS: Final = 30_000
BID_RENEW_MS: Final = 20_000
GATHER_MS: Final = 100
"""How long a gate collects bids before a round: whoever has bid by then is in it."""
GATHER_OWN_MS: Final = 20
"""... on a network of one's own."""
ROUND_MS: Final = 250
"""Between two rounds of one gate."""
VALUE_MS: Final = 1_000
"""A gate seat that does not show its value for so long is left out, and its values are void for the epoch."""
COSIGN_MS: Final = 1_000
"""How long a seat waits for what a proposal speaks of before it objects."""
BATCH_MS: Final = 200
"""What becomes ready within so long of the last batch goes together; after a pause the first goes at once."""
ASSIGN_MS: Final = 40
"""Between two assignments of one shard by its leader, and from the first claim to the first: what claims say meanwhile
goes together."""
WATCH_MS: Final = 500
"""Between two looks of another seat at whether the leader assigns what could be."""
LEASE_TTL_MS: Final = 60_000
RENEW_MS: Final = 20_000
RETRY_MIN_MS: Final = 1_000
LEADER_MUTE_MS: Final = 2_000
"""A seat that has left a claim or a proposal unanswered for so long is passed over as leader."""
GATHER_QUIET_MS: Final = LEADER_MUTE_MS + VALUE_MS
"""Where groups are blocks of addresses, the first assignment of a shard waits until nobody new has come for so long: a
seat of the gate that is mute, or withholds its value, holds a round up for no longer."""
GATHER_MOST_MS: Final = 2 * GATHER_QUIET_MS
"""... but not for longer than so long after the first claim, or whoever comes one by one would hold the job up."""
PATIENCE_MIN_MS: Final = 200
PATIENCE_MAX_MS: Final = 30_000
"""Between two widenings of a shard's draw: half of what its tasks take of late, within these."""
REVEAL_TTL_MS: Final = 20_000
"""A frozen commit that is not revealed for so long counts as withheld."""
NO_BID_MS: Final = 20_000
"""After so long without an admissible claim a task with `agree` equal failures has failed."""
DIFFER_MS: Final = 60_000
"""... and one with `agree` or more results that do not agree."""
LATE_FACTOR: Final = 3
LATE_MIN_MS: Final = 10_000
LATE_MAX: Final = 3
"""More workers, one after another, that a task gets whose workers are late."""
LATE_GUESS: Final = 48
"""Before any task of a shard has ended, one is taken to last this part of the longest that it may."""
SLOW_FACTOR: Final = 2
SLOW_MIN_MS: Final = 2_000
"""When nothing else is left to do, a task is not left to one who takes so many times what others take, if another would
end it that much sooner."""
SEAT_SYNC_MS: Final = 5_000
COLLECT_MS: Final = 2_000
PLACE_RETRY_MAX_MS: Final = 60_000
"""Between two deliveries of a job to a member that has not answered: doubles from RETRY_MIN_MS."""
PLACE_BYTES_PER_MS: Final = 100
"""A linked member that fetches a job's inputs more slowly than this is replaced as if it were mute."""
COLLECT_SILENT_MS: Final = 4_000
"""A seat that has left a Collect unanswered for so long is passed over."""
COLLECT_QUIET_MAX_MS: Final = 300_000
"""A shard of which there is no news is asked about ever less often: doubles from COLLECT_SILENT_MS."""
FETCH_RETRY_MS: Final = 5_000
FETCH_RETRY_MAX_MS: Final = 320_000
CLEAR_MS: Final = 20
"""Between two shards whose records are deleted once their job is forgotten."""
CHECKPOINT_MIN_MS: Final = 10_000
SEAT_GONE_MS: Final = 10_000
"""A seat that could not be reached for so long is replaced; doubles with each succession of a shard, up to the next."""
SEAT_GONE_MAX_MS: Final = 600_000
SUBMITTER_SUCCESSION_MS: Final = 60_000
PROBE_MS: Final = 3_000
PROBE_MAX_MS: Final = 60_000
"""Probes of a peer that does not answer come ever more rarely, down to one in so long."""
SCAN_SHARDS: Final = 64
"""Shards of one job that a node looks at in one go, when members have gone or seats have changed."""
TICK_MS: Final = 10
"""Between two calls that a node asks for: what becomes due meanwhile is done together."""
STEP_MS: Final = 10
"""Between two such goes of one node, over all its jobs."""
CARETAKER_MS: Final = 3_600_000
"""After so long without a quorum the first live members of a panel run on without one."""
MEMBER_GONE_MS: Final = 24 * 3_600_000
MEMBER_GONE_MIN_MS: Final = 1_800_000
RENEWAL_MS: Final = 600_000
"""Between two renewals of one panel that a member proposes."""
SAMPLE_MS: Final = 60_000
ANNOUNCE_MS: Final = 60_000
ANNOUNCE_FIRST_MS: Final = 1_000
"""The first pause between two announcements; doubled after each, up to ANNOUNCE_MS."""
PEER_SYNC_MS: Final = 180_000
CLOCK_GAP_MS: Final = 5_000
"""A larger jump of the clock is a machine that slept: all that would have run out gets one period of grace."""
RETENTION_MIN_MS: Final = 60_000
RETENTION_DEFAULT_MS: Final = 7 * 24 * 3_600_000
RETENTION_MAX_MS: Final = 90 * 24 * 3_600_000
UPTIME_UNIT_MS: Final = 3_600_000
UPTIME_UNITS_MAX: Final = 24
"""A peer's weight in the choice of a panel: hours that it was seen up, from 1 to so many."""
PENALTY_MAX: Final = 100
PENALTY_DECAY_MS: Final = 60_000
BAN_MS: Final = 600_000
BAN_MAX_MS: Final = 24 * 3_600_000
"""A ban doubles with each one before it, up to this."""
ASK_AGAIN_MS: Final = 5_000
"""The same job is neither asked for, nor given, twice on one link within this."""

assert BID_RENEW_MS < BID_TTL_MS
assert LEASE_TTL_MS >= 3 * RENEW_MS, "a lease must survive two lost renewals"
assert COSIGN_MS <= LEADER_MUTE_MS, "an objection comes before the leader is passed over"
assert LEADER_MUTE_MS < SEAT_GONE_MS < LEASE_TTL_MS, "a mute seat is replaced before leases end"
assert REVEAL_TTL_MS < LEASE_TTL_MS
assert ENVELOPE_BYTES_MAX + DELIVER_BYTES_MAX <= FRAME_BYTES_MAX, "one Deliver and one envelope fit a frame"
assert PANEL_MAX * OFFER_BYTES_MAX <= ENVELOPE_BYTES_MAX + 4096
assert WITNESSES <= SEATS
assert REPLICAS_MAX <= COUNTED_MAX <= FREEZE_ENTRIES_MAX
assert COUNTED_MAX * (COUNTED_MAX - 1) // 2 <= AGREEING_PAIRS_MAX, "a verdict can name every pair"
assert SEATS % 2 == 1
assert COLLECT_MS <= COLLECT_SILENT_MS < SEAT_GONE_MS, "another seat is asked before one is replaced"
