-- `make check` lints the scripts that run on the server of STORE_URL.
std = "lua51"
max_line_length = 120
read_globals = {
  "redis", "cjson", "KEYS", "ARGV",
  "END", "FENCE", "END_ID", "FENCE_ID", "LAST_TEXT_ID", "ENDED_TTL", "RELAY_TTL", "NOTES", "BATCH", -- of shared.lua
  "note", "position", "totals_of",
}
files["**/shared.lua"] = { unused = false, ignore = { "431" } }
