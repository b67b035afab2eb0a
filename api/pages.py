"""The API's contract `openapi.json`, and the pages that show it with Swagger UI and ReDoc.

The pages load pinned files from a CDN with integrity hashes, under the tightest policy that each of them works with.
"""

import base64
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

CDN = "https://cdn.jsdelivr.net/npm"
SWAGGER_UI = f"{CDN}/swagger-ui-dist@5.35.0"
REDOC = f"{CDN}/redoc@2.5.4/bundles/redoc.standalone.js"
REDOC_LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"  # ReDoc's footer always loads it

_OPENAPI = Path(__file__).parents[1].joinpath("openapi.json").read_bytes()

_HEAD = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>Chat relay: API</title>
    <link rel="icon" href="data:,">
"""

_START_SWAGGER_UI = """
      SwaggerUIBundle({ url: "./openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
    """

_START_HASH = base64.b64encode(hashlib.sha256(_START_SWAGGER_UI.encode()).digest()).decode()

_SWAGGER_UI_PAGE = f"""{_HEAD}
    <link rel="stylesheet" href="{SWAGGER_UI}/swagger-ui.css" crossorigin="anonymous"
      integrity="sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="{SWAGGER_UI}/swagger-ui-bundle.js" crossorigin="anonymous"
      integrity="sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"></script>
    <script>{_START_SWAGGER_UI}</script>
  </body>
</html>
"""

_REDOC_PAGE = f"""{_HEAD}
  </head>
  <body style="margin: 0">
    <redoc spec-url="./openapi.json"></redoc>
    <script src="{REDOC}" crossorigin="anonymous"
      integrity="sha384-w447zOpYfw/1Tv/5AK9NfHTlQIqE3RVR6KY62jCyy9zNDgO64cMwGGP1Fj0zJVf5"></script>
  </body>
</html>
"""


async def openapi(request: Request) -> Response:
    return Response(_OPENAPI, media_type="application/json")


async def swagger_ui(request: Request) -> Response:
    scripts = f"{SWAGGER_UI}/swagger-ui-bundle.js 'sha256-{_START_HASH}'"
    return _page(_SWAGGER_UI_PAGE, f"script-src {scripts}; style-src {SWAGGER_UI}/swagger-ui.css; img-src data:")


async def redoc(request: Request) -> Response:
    policy = f"script-src {REDOC}; style-src 'unsafe-inline'; worker-src blob:; img-src data: {REDOC_LOGO}"
    return _page(_REDOC_PAGE, policy)


def _page(html: str, policy: str) -> Response:
    everywhere = "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return HTMLResponse(html, headers={"Content-Security-Policy": f"{everywhere}; {policy}"})
