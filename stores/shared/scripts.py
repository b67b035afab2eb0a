"""What the server does in one step, in Lua, and the names of the keys.

Sent whole each time, so that a new primary needs to know nothing. Only arguments carry text. What must work on a server
without memory (signs of life, endings, deletions) is allowed to; everything else is refused there as a whole.
"""

from dataclasses import dataclass

END = 9007199254740991  # the position of a stream's last entry: the most that Lua's numbers tell exactly
FENCE = END - 1  # behind which its maker may append nothing

KEPT = 60  # seconds for which a stream stays when it has ended, for who still follows it
NOTES = 1000  # to one relay, at most
FORGOTTEN = 3600  # seconds without a sign of life
AT_ONCE = 16  # messages that are read before their size is looked at

_ALWAYS = "#!lua flags=allow-oom\n"
_IF_ROOM = "#!lua\n"
_READING = "#!lua flags=no-writes,allow-oom\n"


@dataclass(frozen=True, slots=True)
class Keys:
    """All share one hash tag, so that a cluster has them on one server."""

    prefix: str

    def of(self, name: str) -> str:
        """`list`, `sums`, `running`, `relays`, `format`; or `c:`, `m:`, `q:`, `r:`, `in:` and an id."""
        return f"{{{self.prefix}}}:{name}"

    def of_conversation(self, id: str) -> list[str]:
        """Those of what it is, of its messages, and of where each of them is."""
        return [self.of(f"{kind}:{id}") for kind in "cmq"]


_NOTE = f"""
local function note(inbox, kind, what)
  redis.call('XADD', inbox, 'MAXLEN', '~', {NOTES}, '*', kind, what)
  redis.call('EXPIRE', inbox, {FORGOTTEN})
end
"""

_POSITION = """
local function position(stream, from)
  local last = redis.call('XREVRANGE', stream, from, '-', 'COUNT', 1)[1]
  return last and tonumber(last[1]:match('^%d+')) or -1
end
"""

_SUMS = """
local function held(list, sums)
  local held = redis.call('HMGET', sums, 'messages', 'text')
  return {redis.call('ZCARD', list), tonumber(held[1] or 0), tonumber(held[2] or 0)}
end
"""

_COMMIT = f"""{_NOTE}{_POSITION}{_SUMS}
local c, m, q, list, sums, running, began, ended = unpack(KEYS)
local expected, version, moment, does, kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local relay, inbox, begins, ends, length = ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
local id, messages, text, created = ARGV[11], ARGV[12], ARGV[13], tonumber(ARGV[14])
if (redis.call('HGET', c, 'version') or '') ~= expected then return false end
local maker
if ends ~= '' then
  if position(ended, '{FENCE - 1}') > length then return false end
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
local fields = {{}}
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
  if position(ended, '+') < {END} then redis.call('XADD', ended, '{END}-0', 'e', '') end
  redis.call('EXPIRE', ended, {KEPT})
  maker = maker and maker:match(' (.+)$')
  if maker and maker ~= relay then note(inbox .. maker, 'e', ends) end
end
local held = held(list, sums)
return {{stamp, string.format('%.0f', now), held[1], held[2], held[3]}}
"""
COMMIT = _IF_ROOM + _COMMIT
COMMIT_ALWAYS = _ALWAYS + _COMMIT

LOAD = f"""{_READING}
local c, m, q = unpack(KEYS)
local most = tonumber(ARGV[2])
local head = redis.call('HGETALL', c)
if #head == 0 then return false end
local found, size = {{}}, 0
local function read(first, last)
  local some = redis.call('LRANGE', m, first, last)
  for i = #some, 1, -1 do
    found[#found + 1] = some[i]
    size = size + #some[i]
  end
end
local from = math.max(0, tonumber(redis.call('HGET', q, ARGV[1]) or redis.call('LLEN', m) - 1))
read(from, -1)
while from > 0 and size < most do
  local first = math.max(0, from - {AT_ONCE})
  read(first, from - 1)
  from = first
end
return cjson.encode({{head, found}})
"""

SLICE = f"""{_READING}
local c, m = unpack(KEYS)
local start, stop, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found, size, count = {{}}, 0, 1
if redis.call('EXISTS', c) == 0 then return false end
while size < most do
  local some = redis.call('LRANGE', m, start + #found, math.min(stop, start + #found + count) - 1)
  if #some == 0 then break end
  for _, element in ipairs(some) do
    found[#found + 1] = element
    size = size + #element
  end
  count = math.min(2 * count, {AT_ONCE})
end
return cjson.encode({{redis.call('LLEN', m), redis.call('HGET', c, 'version'), found}})
"""

HEADS = f"""{_READING}
local heads = {{}}
for i, c in ipairs(KEYS) do heads[i] = redis.call('HGETALL', c) end
return cjson.encode(heads)
"""

APPEND = f"""{_IF_ROOM}{_POSITION}
local answers = {{}}
for i, stream in ipairs(KEYS) do
  local expected, after, kind, text = ARGV[i]:match('^(%d+) (%d+) (%a) (.*)$')
  local there = position(stream, '+')
  if there == tonumber(expected) then
    redis.call('XADD', stream, after .. (kind == 'g' and '-*' or '-1'), kind, text)
    there = tonumber(after)
  end
  answers[i] = string.format('%.0f', there)
end
return table.concat(answers, ' ')
"""

FENCE_OFF = f"""{_ALWAYS}{_POSITION}
if redis.call('EXISTS', KEYS[1]) == 1 and position(KEYS[1], '+') < {FENCE} then
  redis.call('XADD', KEYS[1], '{FENCE}-0', 'f', '')
end
return position(KEYS[1], '{FENCE - 1}')
"""

NOTE = f"""{_ALWAYS}{_NOTE}
note(KEYS[1], ARGV[1], ARGV[2])
return 1
"""

BEAT = f"""{_ALWAYS}{_SUMS}
local relays, running, list, sums = unpack(KEYS)
local self = ARGV[1]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', relays, self, now)
local beats, known = redis.call('HGETALL', relays), {{}}
for i = 1, #beats, 2 do
  if now - beats[i + 1] > {FORGOTTEN} * 1000000 then
    redis.call('HDEL', relays, beats[i])
  else
    known[beats[i]] = true
  end
end
for i = 2, #ARGV do known[ARGV[i]] = false end
local entries, all = {{}}, redis.call('HGETALL', running)
for i = 1, #all, 2 do
  local maker = all[i + 1]:match(' (.+)$')
  if maker == self or not known[maker] then
    entries[#entries + 1] = all[i]
    entries[#entries + 1] = all[i + 1]
  end
end
return {{now, beats, entries, held(list, sums)}}
"""
