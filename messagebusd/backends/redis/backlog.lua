-- Reads a part of a channel's backlog, oldest first.
--
-- KEYS  1 last global id, 2 channel's last id, 3 its backlog
-- ARGV  1 after this id, 2 so many messages, 3 so many bytes (but at least one message),
--       4 what a member has more than the message that is sent to a client
--
-- Returns {last global id, id up to which was read, 1 if there is more, member...}.
--
-- Members above the counters are left over from before the counters fell: they are passed over.
-- So is all but the newest of several with one id. What stays here is looked at in small portions.

local global_id = redis.call('GET', KEYS[1])
local last_id = redis.call('GET', KEYS[2])
local page = {global_id or '0', ARGV[1], 0}
if not (global_id and last_id) then
  return page
end
global_id = tonumber(global_id)

local PORTION_BYTES = 1048576
local count, room, surplus = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local taken, offset, portion = 0, 0, 16
local newest, newest_id, score

-- Puts the newest member of the current id on the page; false if there is no room.
local function turn()
  if newest then
    local size = #newest - surplus
    if taken == count or (taken > 0 and size > room) then
      page[3] = 1
      return false
    end
    taken = taken + 1
    room = room - size
    page[taken + 3] = newest
  end
  if score then
    page[2] = score
  end
  newest, newest_id = nil, 0
  return true
end

while true do
  local members = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[1], last_id,
    'WITHSCORES', 'LIMIT', offset, portion)
  local bytes = 0
  for i = 1, #members, 2 do
    local member = members[i]
    bytes = bytes + #member
    if members[i + 1] ~= score then
      if not turn() then
        return page
      end
      score = members[i + 1]
    end
    -- What is no payload is left to the reader, who counts it.
    local id = tonumber(string.match(member, '^%d+')) or 0
    if id <= global_id and (not newest or id > newest_id) then
      newest, newest_id = member, id
    end
  end
  if #members < 2 * portion then
    turn()
    return page
  end
  offset = offset + portion
  portion = math.max(1, math.min(500, math.floor(PORTION_BYTES * portion / (bytes + 1))))
end
