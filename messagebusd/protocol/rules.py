"""Rules about channels: who may subscribe, what a publish must say, how much is kept (SPEC 6).

Rules stand in order, and the first one whose pattern matches a name decides alone. A channel that
no rule matches is public, as all of them are in the Ruby library.

In a pattern ``*`` stands for any run of characters, also for slashes, and ``{user_id}`` for one
path segment. A rule with ``{user_id}`` concerns the channels of all users, and lets each one have
his own: the segment must be the poller's user id as text, character for character. A mismatch is
refused and never looked up in later rules. Names are compared as they are: nothing is decoded,
folded or normalised, because what two spellings of a name share would have to be shared by stores
and Ruby peers as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from messagebusd.protocol.channels import PIPE_ESCAPE, SITE_SEPARATOR, glob
from messagebusd.protocol.message import Id

Subscribe = Literal["public", "authenticated", "granted", "none"]

USER_ID = "{user_id}"
_WILDCARD = re.compile(r"\*+|\{user_id\}")
_ONE_SEGMENT = "([^/]*)"
# A pattern as text, where a star stands for anything and so may hold slashes.
_ONE_SEGMENT_OF_A_PATTERN = "([^/*]*)"


@dataclass(frozen=True, slots=True)
class ChannelRule:
    """What holds for the channels of a pattern.

    ``max_backlog_size`` and ``max_backlog_age`` (seconds) stand in for what a publish does not
    say; None leaves it to the store.
    """

    pattern: str
    subscribe: Subscribe = "public"
    require_audience: bool = False
    max_backlog_size: int | None = None
    max_backlog_age: int | None = None


_DEFAULT = ChannelRule("*")


class ChannelRules:
    """Rules in order, indexed: those that do not apply cost nothing.

    A rule is looked for only under the literal text before the first and after the last wildcard
    of its pattern. What a lookup costs depends on how many lengths such texts have, and on how many
    rules have the same two.
    """

    def __init__(self, rules: Sequence[ChannelRule] = ()) -> None:
        self._index = _Index(_ONE_SEGMENT)
        for rule in rules:
            self._index.add(rule)

    def rule(self, channel: str) -> ChannelRule:
        """The rule for a channel, by its name without the site."""
        found = self._index.find(channel)
        return _DEFAULT if found is None else found.rule

    def may_subscribe(self, channel: str, user_id: Id | None, named: bool | None) -> bool:
        """Whether a poller may have this channel; ``user_id`` None is an anonymous visitor.

        ``named`` is what whoever knows the poller says of the channel: True that he may have it,
        False that he may not, None nothing.
        """
        if named is False:
            return False
        found = self._index.find(channel)
        if found is None:
            return True
        # "" is an id that every name with nothing in the segment would belong to.
        if found.segments and (user_id in (None, "") or set(found.segments) != {str(user_id)}):
            return False
        match found.rule.subscribe:
            case "public":
                return True
            case "authenticated":
                return user_id is not None
            case "granted":
                return named is True
            case "none":
                return False


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that means nothing, or perhaps not what it should. Raises ValueError."""
    if not pattern.startswith(("/", "*")):
        raise ValueError("must begin with / or *")
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in pattern):
        raise ValueError("must hold no control characters")
    for separator in (SITE_SEPARATOR, PIPE_ESCAPE):
        if separator in pattern:
            raise ValueError(f"must not contain {separator}, which no channel name has")
    for placeholder in re.findall(r"\{[^{}]*\}", pattern):
        if placeholder != USER_ID:
            raise ValueError(f"has an unknown placeholder {placeholder}; there is only {USER_ID}")
    without = pattern.replace(USER_ID, "")
    if "{" in without or "}" in without:
        raise ValueError("has a brace without its other half")
    before, *after = pattern.split(USER_ID)
    if not after:
        return
    if not (
        all(each.endswith("/") for each in (before, *after[:-1]))
        and all(each.startswith("/") for each in after[:-1])
        and after[-1][:1] in ("", "/")
    ):
        raise ValueError(f"must have {USER_ID} as a whole segment between slashes")
    if any(USER_ID in each for each in pattern.split("*")[1:-1]):
        # In /a/*/{user_id}/*, /a/b/7/8/c would be user 7's as well as user 8's.
        raise ValueError(f"must not have * both before and after {USER_ID}")


def covered(rules: Sequence[ChannelRule]) -> dict[int, int]:
    """The rules that can never decide, each with an earlier one whose pattern says all that its own
    says, by their places in the list."""
    index = _Index(_ONE_SEGMENT_OF_A_PATTERN)
    found = {}
    for place, rule in enumerate(rules):
        if (earlier := index.find(rule.pattern)) is not None:
            found[place] = earlier.place
        index.add(rule)
    return found


class _Found(NamedTuple):
    """The first rule for a name, and what stands in the name for each ``{user_id}``."""

    place: int
    rule: ChannelRule
    segments: tuple[str, ...] = ()


class _Index:
    """Finds the first rule for a name; ``segment`` is what ``{user_id}`` may stand for."""

    def __init__(self, segment: str) -> None:
        self._segment = segment
        self._count = 0
        self._exact: dict[str, _Found] = {}
        # By literal beginning and end, in order; and the lengths of these texts.
        self._open: dict[tuple[str, str], list[tuple[int, ChannelRule, re.Pattern[str]]]] = {}
        self._lengths: set[tuple[int, int]] = set()

    def add(self, rule: ChannelRule) -> None:
        """Put a rule behind the others."""
        place, self._count = self._count, self._count + 1
        literals = _WILDCARD.split(rule.pattern)
        if len(literals) == 1:
            self._exact.setdefault(rule.pattern, _Found(place, rule))
            return
        first, last = literals[0], literals[-1]
        parts = [
            self._segment.join(map(re.escape, part.split(USER_ID)))
            for part in re.split(r"\*+", rule.pattern)
        ]
        self._open.setdefault((first, last), []).append(
            (place, rule, re.compile(glob(parts), re.DOTALL))
        )
        self._lengths.add((len(first), len(last)))

    def find(self, name: str) -> _Found | None:
        """The first rule for this name."""
        found = self._exact.get(name)
        before = self._count if found is None else found.place
        length = len(name)
        for begin, end in self._lengths:
            if begin + end > length:
                continue
            for place, rule, pattern in self._open.get((name[:begin], name[length - end :]), ()):
                if place > before:
                    break
                if (match := pattern.fullmatch(name)) is not None:
                    found, before = _Found(place, rule, match.groups()), place
                    break
        return found
