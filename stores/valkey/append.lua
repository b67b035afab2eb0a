#!lua
-- Append text to streams, each only behind the position that the relay expects: the positions after it.
local answers = {}
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
