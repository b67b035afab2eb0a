#!lua
-- Append text to streams, each only at the position that the relay expects. Answers the new position of each stream.
local answers = {}
for i, stream in ipairs(KEYS) do
  local expected, after, kind, text = ARGV[i]:match('^(%d+) (%d+) (%a) (.*)$')
  local last = position(stream, '+')
  if last == tonumber(expected) then
    redis.call('XADD', stream, after .. (kind == 'g' and '-*' or '-1'), kind, text)
    last = tonumber(after)
  end
  answers[i] = string.format('%.0f', last)
end
return table.concat(answers, ' ')
