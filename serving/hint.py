"""What the demo prints once it runs: what to do next.

Knows the port, and nothing else of the service.
"""


def demo_hint(port: int) -> str:
    """The page, the API, and three lines for a terminal."""
    elsewhere = "" if port == 8001 else f"VITE_RELAY_URL=http://localhost:{port} "
    return _HINT.format(port=port, react=f"{elsewhere}make react")


_HINT = r"""
Answers come from a stand-in: no key, no network. What to do next:

- In another terminal, `{react}` starts a whole chat on http://localhost:5173
- In a browser, http://localhost:{port}/docs lets you try the API
- Or paste into another terminal:

  C=$(curl -si -X POST localhost:{port}/conversations | tr -d '\r' | sed -n 's/^location: //p')
  curl -s localhost:{port}$C/messages -H 'Content-Type: application/json' -d '{{"content": "Why is the sky blue?"}}'
  curl -N localhost:{port}$C/stream
"""
