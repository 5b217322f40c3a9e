"""The simulator's only source of chance: a small generator of our own, so that a seed means the same run everywhere.

SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). `fork` names an independent
stream, so that drawing more numbers for one purpose changes nothing elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


class Rng:
    """A stream of numbers that its seed alone decides."""

    def __init__(self, seed: int) -> None:
        self._seed = seed & _MASK
        self._state = self._seed

    def fork(self, *name: object) -> Rng:
        """Another stream, decided by this one's seed (not by what was drawn from it) and a name."""
        text = "/".join([str(self._seed), *map(str, name)])
        return Rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))

    def next(self) -> int:
        """64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """A number in [0, bound). The bias of a bound far below 2^64 is of no account here."""
        return (self.next() >> 8) % bound

    def between(self, low: int, high: int) -> int:
        """A number in [low, high]."""
        return low + (self.next() >> 8) % (high - low + 1)

    def chance(self, permille: int) -> bool:
        """True in so many of a thousand draws."""
        return permille > 0 and self.below(1000) < permille

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        found = list(items)
        for i in range(len(found) - 1, 0, -1):
            j = self.below(i + 1)
            found[i], found[j] = found[j], found[i]
        return found

    def bytes(self, count: int) -> bytes:
        words = [self.next().to_bytes(8, "big") for _ in range(-(-count // 8))]
        return b"".join(words)[:count]
