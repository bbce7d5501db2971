"""Serve the page in dist/ on this machine: ``python3 serve.py [PORT]``."""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

port = sys.argv[1] if len(sys.argv) > 1 else "8000"
handler = partial(SimpleHTTPRequestHandler, directory="dist")
try:
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
except (OSError, ValueError, OverflowError) as error:
    print(f"error: port {port}: {error}; choose another, as in npm start -- 8080", file=sys.stderr)
    sys.exit(2)
print(f"http://localhost:{port}; Ctrl-C ends it", flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    sys.exit(130)
