#!lua flags=no-writes,allow-oom
-- Read text of a reply in progress from the entry ARGV[1] on: the end, the kind and the text of each run of one kind;
-- the report of upstream; and the last entry that was read, if there may be more.
local most = 2000 -- entries in one answer
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', most)
local runs, report, texts, kind, position = {}, false, {}, nil, nil
local function close()
  if kind then runs[#runs + 1] = {position, kind, table.concat(texts)} end
  texts, kind = {}, nil
end
for _, entry in ipairs(entries) do
  local name, value = entry[2][1], entry[2][2]
  if name == 'g' then
    report = value
  elseif name == 'c' or name == 'r' then
    if name ~= kind then close() end
    kind, position = name, entry[1]:match('^%d+')
    texts[#texts + 1] = value
  end
end
close()
return cjson.encode({runs, report, #entries == most and entries[#entries][1]})
