"""Applications of Flask, Django and Pyramid behind a pool, asked by a strict client."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import threading
import urllib.parse
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.strict_http import Strict, StrictClient
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

LONG = 60.0
"""Seconds for a program that loads Django twice while it serves, on a busy machine."""

WEB = Path(__file__).parents[2] / "examples" / "web"

PROGRAM = """
    from tests.support.app import *
    import runpy
    from wsgiref.validate import validator
    from prefork.wsgi import WSGIServer

    APPLICATION

    checked = validator(app)

    def application(environ, start_response):
        return (app if "HTTP_X_RAW" in environ else checked)(environ, start_response)

    class Server(WSGIServer):
        workers = 2
        when_ready = announce

    log_to_stderr()
    with Server(("127.0.0.1", 0), application) as server:
        server.serve_forever()
"""

PYRAMID = """
    from pyramid.config import Configurator
    from pyramid.httpexceptions import HTTPFound
    from pyramid.response import FileResponse, Response

    def hello(request):
        return Response(f"Hello {request.matchdict['name']}!")

    def add(request):
        return HTTPFound(f"/sum/{int(request.POST['a']) + int(request.POST['b'])}")

    def total(request):
        return {"sum": int(request.matchdict["sum"])}

    def count(request):
        return Response(app_iter=(b"%d\\n" % number for number in range(5)), content_type="text/plain")

    def source(request):
        return FileResponse(__file__, request, content_type="text/plain")

    with Configurator() as config:
        for name, path, view in (
            ("hello", "/hello/{name}", hello),
            ("add", "/add", add),
            ("count", "/count", count),
            ("source", "/source", source),
        ):
            config.add_route(name, path)
            config.add_view(view, route_name=name)
        config.add_route("total", "/sum/{sum}")
        config.add_view(total, route_name="total", renderer="json")
        app = config.make_wsgi_app()
"""

RAW = ("X-Raw", "1")
"""The field of a request that goes past the validator."""

FORM = ("Content-Type", "application/x-www-form-urlencoded")


def served(start: Callable[..., Program], application: str) -> StrictClient:
    """Start a program with an application, and return a client of it."""
    program = start(PROGRAM.replace("    APPLICATION\n", application))
    return StrictClient(program.address())


def post(client: StrictClient, target: str, body: bytes, *headers: tuple[str, str]) -> Strict:
    """Send a form."""
    fields = [*headers, ("Content-Length", str(len(body)))]
    return client.ask("POST", target, fields, [body])


def test_flask(start: Callable[..., Program]) -> None:
    """Sessions, forms, uploads in chunks, files, streams and errors of the example, all on one connection."""
    path = WEB / "flask_app.py"
    with contextlib.closing(
        served(start, f"    app = runpy.run_path({str(path)!r})['app']\n")
    ) as client:
        first = client.ask("GET", "/")
        cookie = first.headers[b"set-cookie"].decode().partition(";")[0]
        again = client.ask("GET", "/", [("Cookie", cookie)])
        assert (first.status, again.body) == (200, b"This is your visit 2.\n")
        assert b'"factors":[2,2,2,2,3,3,5,7]' in client.ask("GET", "/factors/5040").body
        # Werkzeug reads a form by read(), which the validator does not allow although PEP 3333 does.
        moved = post(client, "/sum", b"a=20&b=22", FORM, RAW)
        assert (moved.status, moved.headers[b"location"]) == (302, b"/factors/42")
        part = (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n%b\r\n--x--\r\n'
        )
        pieces = [part[:30], part[30:-9] % (b"a" * 70_000), part[-9:]]
        headers = [
            ("Content-Type", "multipart/form-data; boundary=x"),
            ("Transfer-Encoding", "chunked"),
        ]
        sent = client.ask("POST", "/upload", [*headers, ("Expect", "100-continue")], pieces)
        assert (sent.interim, sent.body) == ((100,), b'{"f":70000}\n')
        for raw in ([], [RAW]):  # with sendfile() where the validator is not between
            file = client.ask("GET", "/source", raw)
            assert file.body == path.read_bytes()
            known = [("If-None-Match", file.headers[b"etag"].decode()), *raw]
            unchanged = client.ask("GET", "/source", known)
            assert (unchanged.status, unchanged.body) == (304, b"")
            part_of_it = client.ask("GET", "/source", [("Range", "bytes=3-6"), *raw])
            assert (part_of_it.status, part_of_it.body) == (206, file.body[3:7])
        head = client.ask("HEAD", "/source")
        assert (head.headers[b"content-length"], head.body) == (b"%d" % len(file.body), b"")
        assert client.ask("GET", "/count").body == b"0\n1\n2\n3\n4\n"
        statuses = [client.ask("GET", path).status for path in ("/none", f"/factors/{10**15}")]
        assert (statuses, client.ask("DELETE", "/").status) == ([404, 400], 405)
        assert client.can_go_on


def test_pyramid(start: Callable[..., Program]) -> None:
    """Views, renderers, forms, files and streams, all on one connection."""
    with contextlib.closing(served(start, PYRAMID)) as client:
        assert client.ask("GET", "/hello/W%C3%B6rld").body == "Hello Wörld!".encode()
        moved = post(client, "/add", b"a=1&b=2", FORM)
        assert (moved.status, moved.headers[b"location"][-6:]) == (302, b"/sum/3")
        assert client.ask("GET", "/sum/3").body == b'{"sum": 3}'
        assert client.ask("GET", "/count").body == b"0\n1\n2\n3\n4\n"
        for raw in ([], [RAW]):
            assert b"class Server(WSGIServer)" in client.ask("GET", "/source", raw).body
        assert client.ask("GET", "/none").status == 404
        assert client.can_go_on


# --- Django


class Person:
    """Somebody who is logged in to Django's admin."""

    def __init__(self, address: tuple[str, int], cookies: dict[str, str]) -> None:
        self.address = address
        self.cookies = cookies
        self.client = StrictClient(address, LONG)

    def ask(self, target: str, form: dict[str, str] | None = None) -> Strict:
        """Get a page, or send a form with the token of the page before."""
        if not self.client.can_go_on:
            self.client.close()
            self.client = StrictClient(self.address, LONG)
        jar = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = [("Cookie", jar)]
        if form is None:
            answer = self.client.ask("GET", target, headers)
        else:
            body = urllib.parse.urlencode({**form, "csrfmiddlewaretoken": self.token}).encode()
            answer = post(self.client, target, body, FORM, *headers)
        found = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', answer.body)
        if found is not None:
            self.token = found[1].decode()
        for name, morsel in SimpleCookie(answer.headers.get(b"set-cookie", b"").decode()).items():
            self.cookies[name] = morsel.value
        return answer


def test_admin_of_django_through_a_reload(start: Callable[..., Program], tmp_path: Path) -> None:
    """People who edit in Django's admin while the pool reloads its code lose nothing: no request and no row fails."""
    database = tmp_path / "shop.sqlite3"
    program = start(
        None,
        arguments=[
            *("-m", "prefork", "run", str(WEB / "django_app.py"), "-w", "2", "-b", "127.0.0.1:0"),
        ],
        environ={"DJANGO_DATABASE": str(database), "ADMIN_PASSWORD": "secret"},
    )
    program.wait_logged("master pid=.* ready", ceiling=LONG)
    host, _, port = (
        program.logged("listeners=")[0].partition("tcp://")[2].split()[0].rpartition(":")
    )
    address = host, int(port)
    admin = Person(address, {})
    assert admin.ask("/admin/").status == 302
    assert b"Log in" in admin.ask("/admin/login/").body
    assert (
        admin.ask("/admin/login/?next=/admin/", {"username": "admin", "password": "secret"}).status
        == 302
    )
    ends = threading.Event()
    failures: list[Any] = []
    added: list[str] = []

    def edit(number: int) -> None:
        person = Person(address, dict(admin.cookies))
        try:
            for count in range(100_000):
                if ends.is_set():
                    break
                name = f"group {number}.{count}"
                assert person.ask("/admin/auth/group/add/").status == 200
                assert person.ask("/admin/auth/group/add/", {"name": name}).status == 302
                added.append(name)
                assert b"Select group to change" in person.ask("/admin/auth/group/").body
        except Exception as error:  # noqa: BLE001 - shown by the test
            failures.append(error)
        finally:
            person.client.close()

    people = [threading.Thread(target=edit, args=(number,)) for number in range(2)]
    for one in people:
        one.start()
    try:
        wait_until(lambda: len(added) > 2 or failures, "groups that people have added", LONG)
        program.signal(signal.SIGHUP)
        program.wait_logged("reloaded", ceiling=LONG)
        count = len(added)
        wait_until(
            lambda: len(added) > count + 2 or failures, "groups that the new workers have", LONG
        )
    finally:
        ends.set()
        for one in people:
            one.join()
        admin.client.close()
    assert failures == []
    assert program.stop() == 0
    with contextlib.closing(sqlite3.connect(database)) as rows:
        found = {name for (name,) in rows.execute("SELECT name FROM auth_group")}
    assert found == set(added)
