#!lua flags=no-writes,allow-oom
-- Read about ARGV[3] bytes of messages, from the place ARGV[1] on and before ARGV[2].
local conversation, messages = unpack(KEYS)
local start, stop, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local elements, size, count = {}, 0, 1
if redis.call('EXISTS', conversation) == 0 then return false end
while size < most do
  local more = redis.call('LRANGE', messages, start + #elements, math.min(stop, start + #elements + count) - 1)
  if #more == 0 then break end
  for _, element in ipairs(more) do
    if size >= most then break end
    elements[#elements + 1] = element
    size = size + #element
  end
  count = math.min(2 * count, BATCH)
end
return cjson.encode({redis.call('LLEN', messages), redis.call('HGET', conversation, 'version'), elements})
