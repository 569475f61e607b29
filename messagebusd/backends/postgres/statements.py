"""The statements of publishing and reading. Each one is a transaction, and one round trip.

Nothing here is open across two statements: a daemon that is halted in the middle of its work holds
no lock at the server.
"""

from __future__ import annotations

from messagebusd.backends.base import ONCE_SECONDS

# Publishes of all daemons take this lock before they take ids, and commit before they leave it:
# ids are committed, and announced, in order.
PUBLISH_LOCK = 0x6D625F7075626C69
# Announcements must be shorter, in bytes; PostgreSQL refuses others.
NOTIFY_LIMIT_BYTES = 8000
# No id is higher.
LAST_ID = 2**63 - 1

# What is announced: the whole message where that is possible, else its id to our own nodes only.
_NOTIFY = f"""
CASE WHEN octet_length(payload) < {NOTIFY_LIMIT_BYTES} THEN pg_notify($1, payload)
     ELSE pg_notify($2, id::text) END
"""
_PAYLOAD = "id || '|' || id || '|' || replace(channel, '|', '$$123$$') || '|' || value AS payload"

# $1 channel of announcements, $2 that of large messages, $3 channels, $4 values. Planned once for
# all lengths: that is why the arrays stand in SELECTs.
PUBLISH = f"""
WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({PUBLISH_LOCK})),
new AS (
  INSERT INTO message_bus (channel, value)
  SELECT given.channel, given.value
  FROM locked, unnest((SELECT $3::text[]), (SELECT $4::text[]))
    WITH ORDINALITY AS given(channel, value, place)
  ORDER BY given.place
  RETURNING id, channel, value
)
SELECT id, {_NOTIFY} AS notified
FROM (SELECT id, {_PAYLOAD} FROM new ORDER BY id) AS stored
"""

_IS_OLD = f"kept.at <= now() - make_interval(secs => {ONCE_SECONDS})"
_IS_CLAIM = "kept.id IS NULL AND kept.fingerprint = excluded.fingerprint"
# A slot that is taken stays as it is, unless it is too old, or claimed by the same for this.
_TAKE_OVER = f"""
ON CONFLICT (slot) DO UPDATE SET
  fingerprint = CASE WHEN {_IS_OLD} THEN excluded.fingerprint ELSE kept.fingerprint END,
  id = CASE WHEN {_IS_OLD} OR {_IS_CLAIM} THEN excluded.id ELSE kept.id END,
  at = CASE WHEN {_IS_OLD} OR {_IS_CLAIM} THEN excluded.at ELSE kept.at END
"""

# As above, with $5 slots and $6 fingerprints, null where there is no `Once`; no slot comes twice.
# Other transactions' slots show in two ways: those committed before this one began in its
# snapshot, others when they are about to be inserted. Only the second kind wastes an id.
PUBLISH_ONCE = f"""
WITH locked AS MATERIALIZED (
  SELECT pg_advisory_xact_lock({PUBLISH_LOCK}),
         pg_get_serial_sequence('message_bus', 'id')::regclass AS sequence
),
given AS MATERIALIZED (
  SELECT given.*, sequence
  FROM locked, unnest(
      (SELECT $3::text[]), (SELECT $4::text[]), (SELECT $5::bytea[]), (SELECT $6::bytea[]))
    WITH ORDINALITY AS given(channel, value, slot, fingerprint, place)
),
known AS MATERIALIZED (
  SELECT place, known.id, known.fingerprint
  FROM given JOIN messagebusd_once AS known USING (slot)
  WHERE known.at > now() - make_interval(secs => {ONCE_SECONDS})
    AND (known.id IS NOT NULL OR known.fingerprint <> given.fingerprint)
),
numbered AS MATERIALIZED (
  SELECT fresh.*, nextval(fresh.sequence) AS id
  FROM (SELECT * FROM given WHERE place NOT IN (SELECT place FROM known) ORDER BY place) AS fresh
),
kept AS (
  INSERT INTO messagebusd_once AS kept (slot, fingerprint, id, at)
  SELECT slot, fingerprint, id, now() FROM numbered WHERE slot IS NOT NULL ORDER BY slot
  {_TAKE_OVER}
  RETURNING slot, fingerprint, id
),
new AS (
  INSERT INTO message_bus (id, channel, value)
  SELECT numbered.id, numbered.channel, numbered.value
  FROM numbered LEFT JOIN kept USING (slot)
  WHERE numbered.slot IS NULL OR kept.id = numbered.id
  ORDER BY numbered.id
  RETURNING id, channel, value
),
notified AS MATERIALIZED (
  SELECT id, {_NOTIFY} AS notified
  FROM (SELECT id, {_PAYLOAD} FROM new ORDER BY id) AS stored
)
SELECT coalesce(known.id, kept.id, numbered.id) AS id,
       coalesce(known.fingerprint, kept.fingerprint) AS fingerprint,
       notified.id IS NULL AS repeated
FROM given
LEFT JOIN known USING (place)
LEFT JOIN numbered USING (place)
LEFT JOIN kept ON kept.slot = given.slot
LEFT JOIN notified ON notified.id = numbered.id
ORDER BY given.place
"""

CLAIM = f"""
INSERT INTO messagebusd_once AS kept (slot, fingerprint) VALUES ($1, $2)
{_TAKE_OVER}
RETURNING fingerprint
"""

# How far the table goes: its highest id, and the highest that was given out, which is still known
# when the message is gone. `life` is another when the table was made anew.
POSITION = """
SELECT coalesce(max(id), 0) AS stored,
       greatest(max(id), pg_sequence_last_value(
         pg_get_serial_sequence('message_bus', 'id')::regclass), 0) AS given,
       'message_bus'::regclass::oid::bigint AS life
FROM message_bus
"""

# Readers look at ids up to one that they name.
LAST_IDS = """
SELECT name, coalesce((
  SELECT max(id) FROM message_bus WHERE channel = name AND id <= $2), 0) AS id
FROM unnest($1::text[]) AS wanted(name)
"""
LOOKBACK = """
SELECT coalesce(
  (SELECT id FROM message_bus WHERE channel = $1 AND id <= $2 ORDER BY id DESC OFFSET $3 LIMIT 1),
  (SELECT min(id) - 1 FROM message_bus WHERE channel = $1 AND id <= $2), 0) AS id
"""
MESSAGE = "SELECT id, channel, value FROM message_bus WHERE channel = $1 AND id = $2 AND id <= $3"
BY_IDS = "SELECT id, channel, value FROM message_bus WHERE id = ANY($1::bigint[]) ORDER BY id"
DELETE_BACKLOG = "DELETE FROM message_bus WHERE channel = $1"
CHANNELS = """
SELECT channel, max(id) AS id, count(*) AS messages, sum(octet_length(value))::bigint AS bytes
FROM message_bus WHERE channel COLLATE "C" > $1 GROUP BY channel
ORDER BY channel COLLATE "C" LIMIT $2
"""

# Of an envelope, what is no part of the message's wire form where there is no audience.
_ENVELOPE_BYTES = 60


def page(condition: str) -> str:
    """A part of the table in order: $1 after an id, $2 up to an id, $3 so many messages, $4 bytes.

    It may be longer than asked for by a little, never shorter unless messages have audiences;
    ``more`` counts all rows up to one more than was asked for, so that the reader knows.
    """
    return f"""
SELECT id, channel, value, "all" FROM (
  SELECT id, channel, value, count(*) OVER () AS "all",
         sum(octet_length(value) - {_ENVELOPE_BYTES}) OVER (
           ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
  FROM (SELECT id, channel, value FROM message_bus
        WHERE id > $1 AND id <= $2 {condition} ORDER BY id LIMIT $3::bigint + 1) AS found
) AS measured
WHERE coalesce(before, 0) < $4::bigint ORDER BY id
"""


GLOBAL_PAGE = page("")
CHANNEL_PAGE = page("AND channel = $5")
CHANNELS_PAGE = page("AND channel = ANY($5::text[])")
COUNT = """
SELECT count(*) FROM message_bus WHERE id > $1 AND id <= $2 AND channel = ANY($3::text[])
"""
