"""Ask the server of server.py, several questions on one connection.

$ python examples/whoami/client.py me root
uid=1000(alice) gid=1000 pid=4711
root: uid=0 home=/root shell=/bin/bash
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from pathlib import Path


def main() -> None:
    default = Path(os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())) / "whoami"
    parser = argparse.ArgumentParser(description="Ask about yourself (me) or other users.")
    parser.add_argument("--path", default=str(default), help="of the socket")
    parser.add_argument("names", nargs="*", default=["me"])
    given = parser.parse_args()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(given.path)
        with connection.makefile("rw") as stream:
            for name in given.names:
                stream.write(f"{name}\n")
                stream.flush()
                answer = stream.readline()
                if not answer:
                    sys.exit("The server has closed the connection: it serves its own user only.")
                print(answer, end="")


if __name__ == "__main__":
    main()
