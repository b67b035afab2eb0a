#!lua flags=no-writes,allow-oom
-- A conversation and its latest messages, latest first: from the message ARGV[1] on, and ARGV[2] bytes in all.
local c, m, q = unpack(KEYS)
local most = tonumber(ARGV[2])
local head = redis.call('HGETALL', c)
if #head == 0 then return false end
local found, size = {}, 0
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
  local first = math.max(0, from - BATCH)
  read(first, from - 1)
  from = first
end
return cjson.encode({head, found})
