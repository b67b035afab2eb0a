#!lua flags=no-writes,allow-oom
-- About ARGV[3] bytes of messages, from the place ARGV[1] on and before ARGV[2].
local c, m = unpack(KEYS)
local start, stop, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found, size, count = {}, 0, 1
if redis.call('EXISTS', c) == 0 then return false end
while size < most do
  local some = redis.call('LRANGE', m, start + #found, math.min(stop, start + #found + count) - 1)
  if #some == 0 then break end
  for _, element in ipairs(some) do
    found[#found + 1] = element
    size = size + #element
  end
  count = math.min(2 * count, BATCH)
end
return cjson.encode({redis.call('LLEN', m), redis.call('HGET', c, 'version'), found})
