-- Lists the messages of a channel in a range of global ids, without their contents.
--
-- KEYS  1 channel's last id, 2 its backlog
-- ARGV  1 after this global id, 2 up to this one
--
-- Returns {global id, message id, bytes, ...}, newest first.

local last_id = redis.call('GET', KEYS[1])
local found = {}
if not last_id then
  return found
end

local after, up_to = tonumber(ARGV[1]), tonumber(ARGV[2])
-- Most channels have nothing new: one look at the newest member tells.
local offset, portion = 0, 1
-- The newest member of the current id that is in the range, and whether any is beyond its start.
local newest, bytes, is_beyond, score = 0, 0, true, nil

local function turn()
  if newest > 0 then
    found[#found + 1] = newest
    found[#found + 1] = tonumber(score)
    found[#found + 1] = bytes
  end
  local go_on = is_beyond
  newest, bytes, is_beyond = 0, 0, false
  return go_on
end

while true do
  local members = redis.call('ZREVRANGEBYSCORE', KEYS[2], last_id, '-inf',
    'WITHSCORES', 'LIMIT', offset, portion)
  for i = 1, #members, 2 do
    if members[i + 1] ~= score then
      if not turn() then
        return found
      end
      score = members[i + 1]
    end
    local id = tonumber(string.match(members[i], '^%d+'))
    -- What cannot be read does not end the search.
    is_beyond = is_beyond or not id or id > after
    if id and id > after and id <= up_to and id > newest then
      newest, bytes = id, #members[i]
    end
  end
  if #members < 2 * portion then
    turn()
    return found
  end
  offset = offset + portion
  portion = 16
end
