#!lua flags=no-writes,allow-oom
-- Read a conversation, the latest of the messages that are wanted, latest first, about ARGV[3] bytes of them, and the
-- place of the first wanted one: where ARGV[2] is 1 the oldest message, else the message ARGV[1], or the last one.
local conversation, messages, places = unpack(KEYS)
local most = tonumber(ARGV[3])
local head = redis.call('HGETALL', conversation)
if #head == 0 then return false end
local place = redis.call('LLEN', messages)
local wanted = tonumber(ARGV[2] == '1' and 0 or redis.call('HGET', places, ARGV[1]) or math.max(0, place - 1))
local elements, size, count = {}, 0, 1
while place > wanted and size < most do
  local more = redis.call('LRANGE', messages, math.max(wanted, place - count), place - 1)
  for i = #more, 1, -1 do
    if size >= most then break end
    elements[#elements + 1] = more[i]
    size = size + #more[i]
    place = place - 1
  end
  count = math.min(2 * count, BATCH)
end
return cjson.encode({head, elements, wanted})
