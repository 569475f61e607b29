-- Finds the id after which a channel's last few stored messages come.
--
-- KEYS  1 last global id, 2 channel's last id, 3 its backlog
-- ARGV  1 how many messages
--
-- Returns {last global id, id}.
--
-- Two ways of counting, since either can be misled: by members, where ids are missing in between,
-- and by ids, where members of an earlier life of the channel have the same ones.

local global_id = redis.call('GET', KEYS[1]) or '0'
local last_id = redis.call('GET', KEYS[2])
if not last_id then
  return {global_id, 0}
end

local function score(command, from, to, offset)
  local found = redis.call(command, KEYS[3], from, to, 'WITHSCORES', 'LIMIT', offset, 1)
  return tonumber(found[2])
end

local first = score('ZRANGEBYSCORE', '-inf', last_id, 0)
if not first then
  return {global_id, tonumber(last_id)}
end
local count = tonumber(ARGV[1])
local by_members = score('ZREVRANGEBYSCORE', last_id, '-inf', ARGV[1] - 1) or first
local by_ids = math.max(first, tonumber(last_id) - count + 1)
return {global_id, math.min(by_members, by_ids) - 1}
