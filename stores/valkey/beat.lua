#!lua flags=allow-oom
-- Give a sign of life. Answers the time, all signs of life, the replies of this and of silent relays, and the totals.
local relays, running, list, totals = unpack(KEYS)
local self = ARGV[1]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', relays, self, now)
local beats, known = redis.call('HGETALL', relays), {}
for i = 1, #beats, 2 do
  if now - beats[i + 1] > RELAY_TTL * 1000000 then
    redis.call('HDEL', relays, beats[i])
  else
    known[beats[i]] = true
  end
end
for i = 2, #ARGV do known[ARGV[i]] = false end
local entries, all = {}, redis.call('HGETALL', running)
for i = 1, #all, 2 do
  local maker = all[i + 1]:match(' (.+)$')
  if maker == self or not known[maker] then
    entries[#entries + 1] = all[i]
    entries[#entries + 1] = all[i + 1]
  end
end
return {now, beats, entries, totals_of(list, totals)}
