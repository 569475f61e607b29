"""Polls that come too often are told to come back later (SPEC 2.9).

Three allowances, each by itself: of a client, an address and a user. Address and client are known
from the request's head, so that a flood costs neither a body nor a lookup; the user is known after
the lookup.

A client's allowance is there for broken clients, which ask again ten times a second for hours
(REFERENCE 1.5, 2.1). What a healthy one does as often is to fetch news without chunks, so a poll
that brings news gives back what it took. Client ids are the clients' own choice: they are counted
together with the address, and so nobody is turned away for what a stranger does by the same id.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from messagebusd.errors import RateLimited
from messagebusd.http.call import Call
from messagebusd.http.proxies import TrustedProxies
from messagebusd.identity.base import Identity
from messagebusd.protocol.ratelimit import Bucket, Buckets
from messagebusd.settings import PollSettings, Rate

Clock = Callable[[], float]
Jitter = Callable[[], float]


class PollGate:
    """Lets polls pass, or raises RateLimited. ``clock`` is monotonic, ``jitter`` from 0 to 1.

    It stays when settings change (`adopt`): who has used up an allowance gets no fresh one.
    """

    def __init__(
        self,
        settings: PollSettings,
        proxies: TrustedProxies,
        clock: Clock = time.monotonic,
        jitter: Jitter = random.random,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._clients: Buckets | None = None
        self._addresses: Buckets | None = None
        self._users: Buckets | None = None
        self.adopt(settings, proxies)

    def adopt(self, settings: PollSettings, proxies: TrustedProxies) -> None:
        """Go by these settings from now on; what has been used counts for them, too."""
        self._proxies = proxies
        self._clients = self._changed(self._clients, settings.client_rate)
        self._addresses = self._changed(self._addresses, settings.address_rate)
        self._users = self._changed(self._users, settings.user_rate)

    def _changed(self, buckets: Buckets | None, rate: Rate | None) -> Buckets | None:
        if rate is None:
            return None
        if buckets is None:
            return Buckets(rate.amount, rate.seconds, self._clock)
        buckets.change(rate.amount, rate.seconds)
        return buckets

    def enter(self, call: Call, client_id: str) -> Bucket | None:
        """Count a poll by its address and client; the bucket that gets its part back for news."""
        clients, addresses = self._clients, self._addresses
        if clients is None and addresses is None:
            return None
        address = self._proxies.counted_address(call.transport, call.headers)
        if addresses is not None and address:
            self._take(addresses.of(address), addresses, "address")
        if clients is None:
            return None
        bucket = clients.of((address, client_id))
        self._take(bucket, clients, "client")
        return bucket

    def count_user(self, identity: Identity) -> None:
        """Count a poll by its user; who is nobody in particular is not counted."""
        users = self._users
        if users is not None and identity.user_id is not None:
            # Ids are strict by type (SPEC 3.1): 7 and "7" are two users.
            key = (identity.site_id, type(identity.user_id), identity.user_id)
            self._take(users.of(key), users, "user")

    def _take(self, bucket: Bucket, buckets: Buckets, limit: str) -> None:
        if wait := bucket.take():
            # Many may share the bucket, and all are told at once: they come back one by one during
            # the time in which it has room for all of them.
            raise RateLimited(
                f"too many polls of this {limit}",
                retry_after=math.ceil(wait + buckets.seconds * self._jitter()),
                limit=limit,
            )


def take_messages(bucket: Bucket, messages: int, jitter: Jitter = random.random) -> None:
    """Count messages against the allowance of an API key. Raises RateLimited.

    More than it may publish at once are let through when it has published nothing for a while, and
    make up for it with the wait until the next.
    """
    if wait := bucket.take(messages):
        raise RateLimited(
            "too many messages were published with this key",
            retry_after=math.ceil(wait * (1 + jitter())),
            limit="key",
        )
