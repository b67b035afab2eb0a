#!lua
-- Make a change if the conversation still has the expected version: false if it hasn't, else when it was made.
local c, m, q, list, sums, running, began, ended = unpack(KEYS)
local expected, version, moment, does, kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local relay, inbox, begins, ends, length = ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
local id, messages, text, created = ARGV[11], ARGV[12], ARGV[13], tonumber(ARGV[14])
if (redis.call('HGET', c, 'version') or '') ~= expected then return false end
local maker
if ends ~= '' then
  if position(ended, LAST_TEXT_ID) > length then return false end
  maker = redis.call('HGET', running, ends)
  redis.call('HDEL', running, ends)
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local clock = tonumber(redis.call('HGET', sums, 'clock') or 0)
local at = moment
if at <= clock or math.abs(at - now) > 1000000 then at = math.max(now, clock + 1) end
local stamp = string.format('%.0f', at)
local place = 15
local function take()
  local count = tonumber(ARGV[place])
  local first = place + 1
  place = first + count
  return first, place - 1
end
local first, last = take()
local fields = {}
for i = first, last do fields[#fields + 1] = ARGV[i] end
if does == 'delete' then
  redis.call('DEL', c, m, q)
  redis.call('ZREM', list, id)
else
  if expected == '' then redis.call('HSET', c, 'created_at', string.format('%.0f', at - moment + created)) end
  redis.call('HSET', c, 'version', version, 'updated_at', stamp, unpack(fields))
  redis.call('ZADD', list, stamp, id)
  first, last = take()
  if last >= first then
    for i = first, last do redis.call('HDEL', q, ARGV[i]) end
    if kept == 0 then redis.call('DEL', m) else redis.call('LTRIM', m, 0, kept - 1) end
  end
  first, last = take()
  for i = first, last, 2 do
    redis.call('RPUSH', m, ARGV[i + 1])
    redis.call('HSET', q, ARGV[i], kept + (i - first) / 2)
  end
end
redis.call('HINCRBY', sums, 'messages', messages)
redis.call('HINCRBY', sums, 'text', text)
redis.call('HSET', sums, 'clock', stamp)
if begins ~= '' then
  redis.call('HSET', running, begins, id .. ' ' .. relay)
  redis.call('XADD', began, '0-1', 's', '')
end
if ends ~= '' then
  if position(ended, '+') < END then redis.call('XADD', ended, END_ID, 'e', '') end
  redis.call('EXPIRE', ended, ENDED_TTL)
  maker = maker and maker:match(' (.+)$')
  if maker and maker ~= relay then note(inbox .. maker, 'e', ends) end
end
local totals = totals_of(list, sums)
return {stamp, string.format('%.0f', now), totals[1], totals[2], totals[3]}
