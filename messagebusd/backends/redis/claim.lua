-- Takes a slot for something that must happen once.
--
-- KEYS  1 slot
-- ARGV  1 fingerprint, 2 how long to remember it
--
-- Returns 1, or 0 if the slot was taken by another.

local before = redis.call('GET', KEYS[1])
if before then
  return string.match(before, '^%x*') == ARGV[1] and 1 or 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
