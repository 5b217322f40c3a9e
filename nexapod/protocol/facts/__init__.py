"""What statements come to: the tables that job.py and evidence.py are made of.

Every fold gives the same whatever the order of arrival, once each statement has been offered after those that it
answers, and every table has a bound that a stranger cannot use to push out what honest peers said.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Added: TypeAlias = Literal["new", "known", "orphan", "proposal"]
"""What became of a statement that was offered.

`new`: it counts, and did not before. `known`: nothing has changed. `orphan`: what it answers is not known, or does not
count yet; offer it again after that. `proposal`: it is kept, does not count, and is here with more signatures than
before.
"""
