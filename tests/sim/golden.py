"""The golden traces: the digest of everything that happens in a few small worlds.

A change of the protocol, or of the simulator, changes them; that is a fact to look at, not an error. Renew them with
`.venv/bin/python tests/sim/golden.py`, in the same commit as the change.
"""

from __future__ import annotations

import json
from pathlib import Path

from nexapod.sim.scenarios import run_seed

FILE = Path(__file__).with_name("golden.json")
WORLDS = (("quiet", 1), ("lossy", 2), ("partition", 3), ("restart-everyone", 1), ("liars", 2), ("mixed", 4))


def digests() -> dict[str, str]:
    return {f"{scenario}/{seed}": run_seed(scenario, seed).digest for scenario, seed in WORLDS}


if __name__ == "__main__":
    FILE.write_text(json.dumps(digests(), indent=2) + "\n", encoding="utf-8")
