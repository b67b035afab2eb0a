-- Constants and functions for all scripts: Python puts them below each script's first line.

local END = 9007199254740991 -- the position of a stream's last entry: the largest whole number that Lua has exactly
local FENCE = 9007199254740990 -- the position of the entry after which no relay may append text
local END_ID, FENCE_ID, LAST_TEXT_ID = '9007199254740991-0', '9007199254740990-0', '9007199254740989'
local ENDED_TTL = 60 -- seconds for which a stream stays after its end, for relays that still follow it
local RELAY_TTL = 3600 -- seconds without a sign of life after which a relay is forgotten
local NOTES = 1000 -- the most notes that an inbox keeps
local BATCH = 16 -- messages that a script reads before it adds up their sizes

local function note(inbox, kind, message)
  redis.call('XADD', inbox, 'MAXLEN', '~', NOTES, '*', kind, message)
  redis.call('EXPIRE', inbox, RELAY_TTL)
end

-- The position of a stream's last entry, or of the last one up to the id `from`; -1 if there is no stream.
local function position(stream, from)
  local last = redis.call('XREVRANGE', stream, from, '-', 'COUNT', 1)[1]
  return last and tonumber(last[1]:match('^%d+')) or -1
end

local function totals_of(list, totals)
  local counts = redis.call('HMGET', totals, 'messages', 'text')
  return {redis.call('ZCARD', list), tonumber(counts[1] or 0), tonumber(counts[2] or 0)}
end
