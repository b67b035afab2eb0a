#!lua flags=allow-oom
-- Let no relay append to a stream any more. Answers the length of its text.
if redis.call('EXISTS', KEYS[1]) == 1 and position(KEYS[1], '+') < FENCE then
  redis.call('XADD', KEYS[1], FENCE_ID, 'f', '')
end
return position(KEYS[1], LAST_TEXT_ID)
