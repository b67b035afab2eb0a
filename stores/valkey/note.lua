#!lua flags=allow-oom
-- Leave a note in a relay's inbox.
note(KEYS[1], ARGV[1], ARGV[2])
return 1
