"""Webhooks are trusted if, and only if, they are to be trusted."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from client_vectors import cases

from messagebus_client import InvalidWebhook, WebhookFault, WebhookVerifier, mint_token

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
NOW = 1_700_000_000


@pytest.mark.parametrize("case", cases("signatures"))
def test_a_webhook_is_judged_as_the_vectors_say(case: dict[str, Any]) -> None:
    verifier = WebhookVerifier(*case["secrets"], tolerance=case["tolerance"])
    body, headers, now = case["body"].encode(), case["headers"], case["now"]
    if case["error"] is None:
        verified = verifier.verify(body, headers, now)
        assert verified.timestamp == NOW
        assert verifier.verify(case["body"], headers, now) == verified
        environ = {f"HTTP_{name.upper().replace('-', '_')}": headers[name] for name in headers}
        assert verifier.verify(body, environ, now) == verified
    else:
        with pytest.raises(InvalidWebhook) as caught:
            verifier.verify(body, headers, now)
        assert caught.value.reason is WebhookFault(case["error"])


def test_what_is_signed_here_is_trusted_here() -> None:
    headers = WebhookVerifier(SECRET).sign("body", "msg_1", NOW)
    assert WebhookVerifier("other", SECRET).verify(b"body", headers, NOW).id == "msg_1"


@pytest.mark.parametrize("secrets", [(), ("",), ("whsec_",), ("whsec_?",)])
def test_a_secret_that_is_none_is_refused(secrets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"secret|base64"):
        WebhookVerifier(*secrets)


def decoded(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_a_token_says_who_somebody_is() -> None:
    token = mint_token(
        "s" * 32, 42, group_ids=[1, "a"], site_id="forum", channels=["/c/*"], expires_in=60, now=NOW
    )
    header, payload, signature = token.split(".")
    assert decoded(header) == {"alg": "HS256", "typ": "JWT"}
    assert decoded(payload) == {
        "iat": NOW,
        "exp": NOW + 60,
        "sub": 42,
        "groups": [1, "a"],
        "site": "forum",
        "channels": ["/c/*"],
    }
    assert "=" not in signature


def test_claims_of_another_name_can_be_added() -> None:
    token = mint_token(b"k" * 32, None, expires_in=10, now=0, claims={"nick": "ü", "exp": 5})
    assert decoded(token.split(".")[1]) == {"iat": 0, "exp": 5, "nick": "ü"}


def test_a_weak_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        mint_token("short", 1, expires_in=1)
