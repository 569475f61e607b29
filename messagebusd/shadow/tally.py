"""What was compared so far, in numbers and examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from messagebusd.shadow.compare import Difference


@dataclass(slots=True)
class Tally:
    """Polls that were mirrored (``seen``), ``skipped`` because there were too many, not
    ``answered`` by the original, ``compared``, and of these the same at once (``alike``) or after
    asking again (``settled``: something was published in between)."""

    seen: int = 0
    skipped: int = 0
    ignored: int = 0
    unanswered: int = 0
    compared: int = 0
    alike: int = 0
    settled: int = 0
    differing: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def differs(self, differences: Sequence[Difference]) -> list[Difference]:
        """Count a poll with these differences; those of a kind that is new."""
        self.differing += 1
        new = []
        for kind in dict.fromkeys(each.kind for each in differences):
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            if kind not in self.examples:
                first = next(each for each in differences if each.kind == kind)
                self.examples[kind] = first.detail
                new.append(first)
        return new

    @property
    def is_good(self) -> bool:
        """Whether something was compared, and nothing differs."""
        return self.compared > 0 and not self.differing

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"{self.compared} polls compared: {self.alike} alike, {self.settled} alike when asked "
            f"again, {self.differing} differ"
        )
        rest = {
            "skipped (more than were to be compared)": self.skipped,
            "ignored (no polls)": self.ignored,
            "not answered by the original": self.unanswered,
        }
        yield f"{self.seen} requests mirrored" + "".join(
            f", {count} {what}" for what, count in rest.items() if count
        )
        for kind, count in sorted(self.kinds.items(), key=lambda each: -each[1]):
            yield f"  {kind}: {count} polls, for example {self.examples[kind]}"
        if not self.compared:
            yield "nothing was compared: does nginx mirror polls to here?"

    def as_json(self) -> str:
        """For machines."""
        return msgspec.json.encode(self).decode()
