"""`python server.py`, but it pings after 0.2 s of silence, not 15 s, and asks to come back after 20 ms, not 1 s."""

import runpy

import api.events

PING_INTERVAL = 0.2

if __name__ == "__main__":
    api.events.PING_INTERVAL = PING_INTERVAL  # type: ignore[assignment]  # any number does
    api.events.RECONNECT_INTERVAL_MS = 20
    runpy.run_path("server.py", run_name="__main__")
