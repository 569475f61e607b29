"""The soak's account finds what it is there to find."""

from __future__ import annotations

import pytest

from tests.soak.ledger import EVERYBODY, Audience, Ledger, Reader, Who

CHANNEL = "/a"
ANNA = Who("anna", user_id=1, group_ids=frozenset({7}))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def anna(ledger: Ledger) -> Reader:
    return ledger.reader("anna", ANNA, {CHANNEL: 0})


def publish(ledger: Ledger, *ids: int, audience: Audience = EVERYBODY) -> None:
    for each in ids:
        ledger.begin(CHANNEL, f"t{each}", audience)
        ledger.store(CHANNEL, f"t{each}", each)


def take(reader: Reader, *ids: int) -> None:
    for each in ids:
        reader.take(CHANNEL, each, f"t{each}")


def test_all_is_well(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1, 2)
    publish(ledger, 3, audience=Audience(user_ids=(2,)))
    take(anna, 1, 2)
    anna.told({CHANNEL: 3})
    ledger.audit()
    assert anna.positions() == {CHANNEL: 3}
    assert ledger.behind() == []
    ledger.close()
    assert (ledger.wrongs, ledger.checked, ledger.stored) == ({}, 2, 3)


def test_a_message_is_lost_behind_a_newer_one(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1, 2, 3)
    take(anna, 1, 3)
    ledger.audit()
    assert ledger.wrongs == {"lost": 1}
    assert ledger.examples == ["lost: anna on /a: 2 (t2)"]


def test_a_message_is_lost_behind_a_status(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1, 2)
    take(anna, 1)
    anna.told({CHANNEL: 2})
    ledger.audit()
    assert ledger.wrongs == {"lost": 1}


def test_the_last_message_is_lost(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1, 2)
    take(anna, 1)
    ledger.audit()
    assert ledger.wrongs == {}
    assert ledger.behind() == ["anna on /a at 1"]
    ledger.close()
    assert ledger.wrongs == {"lost": 1}


def test_a_loss_is_found_by_who_leaves(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1, 2)
    take(anna, 2)
    ledger.leave(anna)
    assert ledger.wrongs == {"lost": 1}


def test_who_leaves_is_not_due_what_comes_later(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1, 2)
    take(anna, 1)
    ledger.leave(anna)
    publish(ledger, 3)
    ledger.close()
    assert ledger.wrongs == {}


@pytest.mark.parametrize(
    ("ids", "kind"), [((1, 1), "twice"), ((2, 1), "order"), ((1, 2, 1), "twice")]
)
def test_twice_and_out_of_order(
    ledger: Ledger, anna: Reader, ids: tuple[int, ...], kind: str
) -> None:
    publish(ledger, 1, 2)
    take(anna, *ids)
    assert ledger.wrongs == {kind: 1}


def test_twice_after_it_was_looked_at(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1)
    take(anna, 1)
    ledger.audit()
    take(anna, 1)
    assert ledger.wrongs == {"order": 1}


def test_a_message_is_stored_twice(ledger: Ledger, anna: Reader) -> None:
    """Under two ids, of which its publisher was told one."""
    publish(ledger, 1)
    take(anna, 1)
    anna.take(CHANNEL, 2, "t1")
    ledger.close()
    assert ledger.wrongs == {"not for it": 1}


@pytest.mark.parametrize(
    "audience",
    [
        Audience(user_ids=(2,)),
        Audience(group_ids=(8,)),
        Audience(client_ids=("berta",)),
        Audience(user_ids=(1,), client_ids=("berta",)),
    ],
)
def test_a_message_for_somebody_else(ledger: Ledger, anna: Reader, audience: Audience) -> None:
    publish(ledger, 1, audience=audience)
    take(anna, 1)
    ledger.audit()
    assert ledger.wrongs == {"not for it": 1}


@pytest.mark.parametrize(
    "audience",
    [
        EVERYBODY,
        Audience(user_ids=(2, 1)),
        Audience(group_ids=(8, 7)),
        Audience(user_ids=(2,), group_ids=(7,)),
        Audience(group_ids=(7,), client_ids=("anna",)),
    ],
)
def test_a_message_for_her(ledger: Ledger, anna: Reader, audience: Audience) -> None:
    publish(ledger, 1, audience=audience)
    ledger.close()
    assert ledger.wrongs == {"lost": 1}


def test_a_server_is_due_everything(ledger: Ledger) -> None:
    server = ledger.reader("server", Who(), {CHANNEL: 0})
    publish(ledger, 1, audience=Audience(client_ids=("anna",)))
    take(server, 1)
    ledger.close()
    assert ledger.wrongs == {}


def test_unasked(ledger: Ledger, anna: Reader) -> None:
    anna.take("/b", 1, "t1")
    anna.told({"/c": 1})
    assert ledger.wrongs == {"foreign": 2}


def test_a_status_that_steps_back(ledger: Ledger, anna: Reader) -> None:
    publish(ledger, 1, 2)
    take(anna, 1, 2)
    anna.told({CHANNEL: 1})
    assert ledger.wrongs == {"status": 1}


def test_what_is_under_way_is_not_looked_at_yet(ledger: Ledger, anna: Reader) -> None:
    """It was delivered before its publisher was answered, or will be found lost afterwards."""
    publish(ledger, 1)
    ledger.begin(CHANNEL, "t2", EVERYBODY)
    ledger.begin(CHANNEL, "t3", EVERYBODY)
    ledger.store(CHANNEL, "t3", 3)
    take(anna, 1, 3)
    ledger.audit()
    assert ledger.wrongs == {}
    ledger.store(CHANNEL, "t2", 2)
    ledger.audit()
    assert ledger.wrongs == {"lost": 1}


def test_what_was_never_stored(ledger: Ledger) -> None:
    ledger.begin(CHANNEL, "t1", EVERYBODY)
    assert ledger.unsettled == ["t1"]
    ledger.close()
    assert ledger.wrongs == {"lost": 1}


def test_an_id_below_one_that_was_known_before(ledger: Ledger) -> None:
    publish(ledger, 5)
    publish(ledger, 4)
    assert ledger.wrongs == {"order": 1}


def test_a_waiting_message_has_the_id_that_a_server_saw(ledger: Ledger, anna: Reader) -> None:
    ledger.begin(CHANNEL, "queued-1", EVERYBODY)
    ledger.begin(CHANNEL, "t2", EVERYBODY)
    ledger.seen(CHANNEL, "queued-1", 1)
    ledger.seen(CHANNEL, "t2", 2)  # its publisher will say
    assert ledger.unsettled == ["t2"]
    ledger.store(CHANNEL, "t2", 2)
    anna.take(CHANNEL, 1, "queued-1")
    anna.take(CHANNEL, 2, "t2")
    ledger.close()
    assert ledger.wrongs == {}


def test_somebody_new_wants_what_is_new(ledger: Ledger) -> None:
    publish(ledger, 1)
    berta = ledger.reader("berta", Who("berta"), {CHANNEL: None})
    assert berta.positions() == {CHANNEL: -1}
    publish(ledger, 2)
    ledger.audit()
    assert ledger.behind() == ["berta on /a at None"]
    berta.told({CHANNEL: 1})
    take(berta, 2)
    ledger.close()
    assert ledger.wrongs == {}


def test_somebody_new_gets_news_before_the_status(ledger: Ledger) -> None:
    publish(ledger, 1)
    berta = ledger.reader("berta", Who("berta"), {CHANNEL: None})
    publish(ledger, 2, 3)
    take(berta, 2)
    berta.told({CHANNEL: 2})
    ledger.close()
    assert ledger.wrongs == {"lost": 1}


def test_somebody_new_is_never_told_where(ledger: Ledger) -> None:
    ledger.reader("berta", Who("berta"), {CHANNEL: None})
    publish(ledger, 1)
    ledger.close()
    assert ledger.wrongs == {"lost": 1}


def test_nothing_is_kept_that_everybody_has(ledger: Ledger, anna: Reader) -> None:
    berta = ledger.reader("berta", Who("berta"), {CHANNEL: None})
    for each in range(1, 1001):
        publish(ledger, each)
        take(anna, each)
    ledger.audit()
    assert ledger.kept == 1000  # for her, who has not been told yet
    berta.told({CHANNEL: 1000})
    ledger.audit()
    assert ledger.kept == 0
    assert ledger.checked == 1000
