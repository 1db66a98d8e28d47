#!/usr/bin/python3
"""An example of a driver for understudy's provisioner: docs/driver-protocol.md, version 1.

It runs a command for each installation, which is to return when the machine boots what it
installed. The command finds the order in its environment: UNDERSTUDY_MACHINE, UNDERSTUDY_SERVER,
UNDERSTUDY_OS, UNDERSTUDY_BOOT, UNDERSTUDY_IMAGE, UNDERSTUDY_TIMEOUT_S; the last line that it prints
is shown to operators.

    example.py --listen 127.0.0.1:8900 --token /etc/understudy/driver_token \\
        --state /var/lib/understudy-driver --install 'exec /usr/local/sbin/install-machine'

It listens in the clear: on loopback, beside the provisioner, or behind a server that does TLS.
"""

import argparse
import hmac
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import threading

ORDER = ("machine", "server", "os", "boot", "timeout_s", "fence")
LOCK = threading.Lock()


class Refused(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code = status, code


class Installations:
    """One file for each: what was ordered is found again after a restart."""

    def __init__(self, folder, command):
        self.folder, self.command, self.running = folder, command, {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob("*.json"):
            known = json.loads(path.read_text())
            if known["state"] == "running":
                # Whether its command came to an end is not known: the machine's state is.
                self.write(dict(known, state="failed", message="the driver was restarted"))

    def path(self, ident):
        return self.folder / f"{ident}.json"

    def read(self, ident):
        try:
            return json.loads(self.path(ident).read_text())
        except FileNotFoundError:
            raise Refused(404, "no_such_installation", ident) from None

    def write(self, known):
        new = self.folder / "new"
        with new.open("w") as out:
            json.dump(known, out)
            out.flush()
            os.fsync(out.fileno())
        new.replace(self.path(known["id"]))
        return known

    def checked(self, key):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", key or ""):
            raise Refused(400, "no_key", "Idempotency-Key is missing, or is no name")

    def begin(self, key, order):
        # The key is the installation's name: whoever asks twice gets the same one.
        self.checked(key)
        if any(k not in order for k in ORDER):
            raise Refused(400, "bad_order", f"an order has {', '.join(ORDER)}")
        if self.path(key).exists():
            known = self.read(key)
            # The same order of a later run has a higher fence.
            same = {k: v for k, v in known["order"].items() if k != "fence"}
            # One that was cancelled before it came has none.
            if same and same != {k: v for k, v in order.items() if k != "fence"}:
                raise Refused(409, "key_reused", "this key was another order's")
            return known
        for path in self.folder.glob("*.json"):
            other = json.loads(path.read_text())
            if other["order"].get("machine") != order["machine"]:
                continue
            if other["order"]["fence"] > order["fence"]:
                raise Refused(409, "fenced", f"the fence of {other['id']} is higher")
            if other["state"] == "running":
                raise Refused(409, "busy", f"{other['id']} is under way")
        known = self.write({"id": key, "state": "running", "message": "", "order": order})
        environment = {f"UNDERSTUDY_{k.upper()}": str(v or "") for k, v in order.items()}
        self.running[key] = subprocess.Popen(
            ["sh", "-c", self.command],
            env=dict(os.environ, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        threading.Thread(target=self.follow, args=(key,), daemon=True).start()
        return known

    def follow(self, ident):
        process, last = self.running[ident], ""
        for line in process.stdout:
            last = line.strip()[:300] or last
            with LOCK:
                self.write(dict(self.read(ident), message=last))
        status = process.wait()
        with LOCK:
            known = self.read(ident)
            if known["state"] == "running":
                state = "done" if status == 0 else "failed"
                self.write(dict(known, state=state, message=last or f"exit status {status}"))

    def cancel(self, ident):
        known = self.read(ident)
        if known["state"] == "running":
            os.killpg(self.running[ident].pid, signal.SIGTERM)
            known = self.write(dict(known, state="cancelled", message="cancelled"))
        return known


    def cancel_key(self, key):
        # Keys are ids here. One that is not known is not begun when its order comes late.
        self.checked(key)
        if self.path(key).exists():
            return self.cancel(key)
        known = {"id": key, "state": "cancelled", "message": "cancelled before it was begun"}
        return self.write(dict(known, order={}))


class Handler(http.server.BaseHTTPRequestHandler):
    installations, token = None, ""

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_one(self, method):
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise Refused(401, "no_token", "Authorization: Bearer is missing or wrong")
        length = min(int(self.headers.get("Content-Length") or 0), 65536)
        body = self.rfile.read(length)
        if (method, self.path) == ("GET", "/"):
            return 200, {"protocol": "understudy-driver", "versions": [1]}
        if (method, self.path) == ("POST", "/v1/installations"):
            try:
                order = json.loads(body)
            except ValueError:
                raise Refused(400, "bad_order", "the body is no JSON") from None
            return 202, self.installations.begin(self.headers.get("Idempotency-Key"), order)
        if (method, self.path) == ("POST", "/v1/cancellations"):
            return 200, self.installations.cancel_key(self.headers.get("Idempotency-Key"))
        found = re.fullmatch(r"/v1/installations/([A-Za-z0-9][A-Za-z0-9._-]{0,199})(/cancel)?", self.path)
        if found and method == "GET" and not found[2]:
            return 200, self.installations.read(found[1])
        if found and method == "POST" and found[2]:
            return 200, self.installations.cancel(found[1])
        raise Refused(404, "no_such_resource", f"{method} {self.path}")

    def do(self, method):
        try:
            with LOCK:
                status, document = self.handle_one(method)
        except Refused as e:
            status, document = e.status, {"code": e.code, "message": str(e)}
        self.answer(status, document)

    def do_GET(self):
        self.do("GET")

    def do_POST(self):
        self.do("POST")


def main():
    parser = argparse.ArgumentParser(description="An example of a driver for understudy.")
    parser.add_argument("--listen", default="127.0.0.1:8900")
    parser.add_argument("--token", type=pathlib.Path, required=True, help="file with the bearer token")
    parser.add_argument("--state", type=pathlib.Path, required=True, help="folder of installations")
    parser.add_argument("--install", required=True, help="shell command that installs a machine")
    given = parser.parse_args()
    host, port = given.listen.rsplit(":", 1)
    Handler.token = given.token.read_text().strip()
    Handler.installations = Installations(given.state, given.install)
    http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
