"""Peers that break the rules, one family a module. KINDS names them all."""

from __future__ import annotations

from typing import Final

from nexapod.sim.liars import floods, mangling, probing, seats, workers
from nexapod.sim.liars.base import Liar

KINDS: Final[dict[str, type[Liar]]] = {
    "wrong": workers.Wrong,
    "colluder": workers.Colluder,
    "silent": workers.Silent,
    "hoarder": workers.Hoarder,
    "late": workers.Late,
    "withholder": workers.Withholder,
    "equivocator": workers.Equivocator,
    "poisoner": workers.Poisoner,
    "copycat": workers.Copycat,
    "squatter": workers.Squatter,
    "namesake": workers.Namesake,
    "mute-seat": seats.MuteSeat,
    "lying-seat": seats.LyingSeat,
    "hasty-seat": seats.HastySeat,
    "stubborn-seat": seats.StubbornSeat,
    "two-faced-seat": seats.TwoFacedSeat,
    "beacon-withholder": seats.BeaconWithholder,
    "beacon-aborter": seats.BeaconAborter,
    "inventor": seats.Inventor,
    "usurper": seats.Usurper,
    "walker": seats.Walker,
    "stopper": seats.Stopper,
    "garbage": floods.Garbage,
    "replayer": floods.Replayer,
    "profile-flood": floods.ProfileFlood,
    "job-flood": floods.JobFlood,
    "namer": floods.Namer,
    "suppressor": floods.Suppressor,
    "relay": floods.Relay,
    "filler": floods.Filler,
    "leech": floods.Leech,
    "talker": floods.Talker,
    "newcomer": floods.Newcomer,
    "mangler": mangling.Mangler,
    "prober": probing.Prober,
}
HONEST_SEATS: Final = ("wrong", "silent", "hoarder", "late", "poisoner", "squatter")
"""Those that lie about their own work alone: as seats they do all that seats must."""
