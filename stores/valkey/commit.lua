#!lua
-- Apply a change if the conversation still has the expected version. Answers false if not, else the moment of the
-- change, the server's time and the totals.
local conversation, messages, places, list, sums, running, began, ended = unpack(KEYS)
local expected, version, moment, action, kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local relay, inbox, begins, ends, length = ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
local id, more_messages, more_text, created = ARGV[11], ARGV[12], ARGV[13], tonumber(ARGV[14])
if (redis.call('HGET', conversation, 'version') or '') ~= expected then return false end
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
local next_group = 15
local function take_group() -- the indexes of the first and the last argument of the next group
  local first = next_group + 1
  next_group = first + tonumber(ARGV[next_group])
  return first, next_group - 1
end
local first, last = take_group()
local fields = {}
for i = first, last do fields[#fields + 1] = ARGV[i] end
if action == 'delete' then
  redis.call('DEL', conversation, messages, places)
  redis.call('ZREM', list, id)
else
  if expected == '' then
    redis.call('HSET', conversation, 'created_at', string.format('%.0f', at - moment + created))
  end
  redis.call('HSET', conversation, 'version', version, 'updated_at', stamp, unpack(fields))
  redis.call('ZADD', list, stamp, id)
  first, last = take_group()
  if last >= first then
    for i = first, last do redis.call('HDEL', places, ARGV[i]) end
    if kept == 0 then redis.call('DEL', messages) else redis.call('LTRIM', messages, 0, kept - 1) end
  end
  first, last = take_group()
  for i = first, last, 2 do
    redis.call('RPUSH', messages, ARGV[i + 1])
    redis.call('HSET', places, ARGV[i], kept + (i - first) / 2)
  end
end
redis.call('HINCRBY', sums, 'messages', more_messages)
redis.call('HINCRBY', sums, 'text', more_text)
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
