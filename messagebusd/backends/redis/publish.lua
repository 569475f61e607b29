-- Stores a message and announces it, both or neither.
--
-- KEYS  1 last global id, 2 channel's last id, 3 its backlog, 4 global backlog,
--       5 what was published under a slot (only for a publish that must happen once)
-- ARGV  1 pub/sub channel, 2 the payload after its ids, 3 channel, 4 age, 5 size, 6 global size,
--       7 trim at every so many ids, 8 fingerprint, 9 how long to remember it
--
-- Returns {message id, global id}, with a third item if that was so before, or CONFLICT.
-- Ids are formatted where they become text: Lua writes 100000000000000 as 1e+14.

local global_id_key, id_key, backlog, global_backlog, once = unpack(KEYS)
local age, every = tonumber(ARGV[4]), tonumber(ARGV[7])
local size, global_size = tonumber(ARGV[5]), tonumber(ARGV[6])

if once then
  local before = redis.call('GET', once)
  if before then
    local fingerprint, message_id, global_id = string.match(before, '^(%x+) ?(%d*) ?(%d*)$')
    if fingerprint ~= ARGV[8] then
      return 'CONFLICT'
    end
    if message_id ~= '' then
      return {tonumber(message_id), tonumber(global_id), 1}
    end
  end
end

-- An id as text. Concatenation alone would do for small ones, and is faster.
local function text(id)
  return id < 1e14 and id or string.format('%.0f', id)
end

-- After a failure (a key of another type, a permission that is missing) nothing more is done. This
-- costs less than Lua's pcall around all of it.
local failure

local function call(...)
  if failure then
    return nil
  end
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    failure = answer
    return nil
  end
  return answer
end

local payload, entry
local global_id = call('INCR', global_id_key)
local id = call('INCR', id_key)

if id then
  payload = text(global_id) .. '|' .. text(id) .. '|' .. ARGV[2]
  entry = text(id) .. '|' .. ARGV[3]
  call('ZADD', backlog, id, payload)
  call('EXPIRE', backlog, ARGV[4])
  call('ZADD', global_backlog, global_id, entry)
  -- The log belongs to all channels: a short-lived message must not take it along.
  if (call('TTL', global_backlog) or 0) <= age then
    call('EXPIRE', global_backlog, ARGV[4])
  end
  call('PUBLISH', ARGV[1], payload)
  call('EXPIRE', id_key, ARGV[4])
  if id > size and id % every == 0 then
    call('ZREMRANGEBYSCORE', backlog, 1, id - size)
  end
  if global_id > global_size and global_id % every == 0 then
    call('ZREMRANGEBYSCORE', global_backlog, 1, global_id - global_size)
  end
  if once then
    call('SET', once, ARGV[8] .. ' ' .. text(id) .. ' ' .. text(global_id), 'EX', ARGV[9])
  end
end

if not failure then
  return {id, global_id}
end

-- Leave no trace, above all no gap in the ids.
if id then
  redis.pcall('ZREM', backlog, payload)
  redis.pcall('ZREM', global_backlog, entry)
  if redis.call('DECR', id_key) == 0 then
    redis.call('DEL', id_key)
  end
end
if global_id then
  redis.call('DECR', global_id_key)
end
return failure
