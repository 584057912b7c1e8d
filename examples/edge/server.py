"""A line server for known clients: encrypted, and each client shows a certificate.

    $ python examples/edge/server.py --certificate server.pem --client-ca clients.pem
    Serving on 0.0.0.0:9443

A request is a line, and the answer repeats it with the name in the client's certificate. ``tls_certificate``
and ``tls_client_ca`` are all that it takes: the workers do the handshake, under a deadline, and a client
without a certificate never reaches the handler.

Behind a proxy that hands the encrypted bytes on (haproxy.cfg), ``--proxy-from`` names the proxy. Then the
log and the handler know the client, and not the proxy only:

    $ python examples/edge/server.py … --port 9444 --proxy-from 127.0.0.1
    $ haproxy -f examples/edge/haproxy.cfg
"""

from __future__ import annotations

import argparse
import contextlib
import logging

import prefork


class Greeter(prefork.StreamRequestHandler):
    def handle(self) -> None:
        host, port = self.client_address[:2]  # still a tuple
        name = self.client_address.identity  # such as CN=alice,O=Example
        for line in self.rfile:
            self.wfile.write(
                f"{name} at {host}:{port} said {line.decode(errors='replace')}".encode()
            )


class GreeterServer(prefork.PreForkingTCPServer):
    tls_watch = True  # a certificate that is renewed is taken by itself
    edge_timeout = "5s"
    access_log = "text"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Greet clients by the names in their certificates."
    )
    parser.add_argument("--certificate", required=True, help="PEM: certificate, chain and key")
    parser.add_argument("--client-ca", required=True, help="PEM: who signs clients' certificates")
    parser.add_argument("--proxy-from", help="a proxy, or a network of proxies")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=9443)
    given = parser.parse_args()

    logging.basicConfig(level=logging.INFO)  # or the access log would show nothing
    GreeterServer.tls_certificate = given.certificate
    GreeterServer.tls_client_ca = given.client_ca
    GreeterServer.proxy_from = given.proxy_from
    with GreeterServer((given.host, given.port), Greeter) as server:
        print(f"Serving on {given.host}:{server.server_address[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is a good way to stop it
            server.serve_forever()


if __name__ == "__main__":
    main()
