#!lua flags=no-writes,allow-oom
-- Read a conversation and its latest messages, latest first: from the message ARGV[1] on, and at least ARGV[2] bytes.
local conversation, messages, places = unpack(KEYS)
local most = tonumber(ARGV[2])
local head = redis.call('HGETALL', conversation)
if #head == 0 then return false end
local elements, size = {}, 0
local function read(first, last)
  local more = redis.call('LRANGE', messages, first, last)
  for i = #more, 1, -1 do
    elements[#elements + 1] = more[i]
    size = size + #more[i]
  end
end
local from = math.max(0, tonumber(redis.call('HGET', places, ARGV[1]) or redis.call('LLEN', messages) - 1))
read(from, -1)
while from > 0 and size < most do
  local first = math.max(0, from - BATCH)
  read(first, from - 1)
  from = first
end
return cjson.encode({head, elements})
