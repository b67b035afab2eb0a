#!lua flags=no-writes,allow-oom
-- Read the fields of several conversations, without their messages.
local heads = {}
for i, conversation in ipairs(KEYS) do heads[i] = redis.call('HGETALL', conversation) end
return cjson.encode(heads)
