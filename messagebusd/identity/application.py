"""The connection to the host application: one signed POST, bounded in every way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time

import aiohttp

from messagebusd.errors import LookupUnavailable, LookupUnusable
from messagebusd.identity.answer import MAX_ANSWER_BYTES, Reply

# Between a connection that failed and its one retry: an application that restarts is back.
RETRY_SECONDS = 0.05


class Application:
    """Asks it. With a ``secret``, ``whsec_`` and base64 or plain text, requests are signed as
    standardwebhooks.com says. How long an answer may take is for the caller to decide."""

    def __init__(self, url: str, secret: str | None) -> None:
        self._url = url
        self._secret = None if secret is None else _secret_bytes(secret)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Get ready; called once."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # whoever asks sees to that
            cookie_jar=aiohttp.DummyCookieJar(),  # cookies belong to visitors, not to us
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,  # a few bytes could stand for gigabytes
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, question: bytes) -> Reply:
        """Its reply. Raises LookupUnavailable and LookupUnusable.

        A connection that could not be made, or that the application dropped without an answer, is
        tried once more, with the same ``webhook-id``.
        """
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **self._signature(question),
        }
        try:
            try:
                return await self._post(question, headers)
            except aiohttp.ClientSSLError:
                raise
            except aiohttp.ServerDisconnectedError:  # as it closed an idle connection
                return await self._post(question, headers)
            except (aiohttp.ClientOSError, OSError):
                await asyncio.sleep(RETRY_SECONDS)
                return await self._post(question, headers)
        except (aiohttp.ClientError, OSError) as error:
            # Without its text, which may quote the answer, cookies and all.
            kind = type(error).__name__
            raise LookupUnavailable(f"the application was not reached: {kind}") from None

    async def _post(self, question: bytes, headers: dict[str, str]) -> Reply:
        assert self._session is not None, "not opened"
        async with self._session.post(
            self._url, data=question, headers=headers, allow_redirects=False
        ) as response:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise LookupUnusable("the application's answer is compressed")
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise LookupUnusable(
                        f"the application's answer has more than {MAX_ANSWER_BYTES} bytes"
                    )
            return Reply(response.status, tuple(response.headers.items()), bytes(body))

    def _signature(self, question: bytes) -> dict[str, str]:
        if self._secret is None:
            return {}
        identifier, timestamp = f"msg_{secrets.token_hex(12)}", str(int(time.time()))
        signed = f"{identifier}.{timestamp}.".encode() + question
        digest = hmac.new(self._secret, signed, hashlib.sha256).digest()
        return {
            "webhook-id": identifier,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }


def _secret_bytes(secret: str) -> bytes:
    """The key that a secret stands for: base64 after ``whsec_``, else its own bytes."""
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"))
    return secret.encode()
