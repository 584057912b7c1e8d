"""A Flask application on a pool.

$ prefork -w 2 examples/web/flask_app.py
$ curl http://127.0.0.1:8000/factors/5040
{"factors":[2,2,2,2,3,3,5,7],"worker":4711}
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flask import Flask, abort, jsonify, redirect, request, send_file, session, url_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.typing import ResponseReturnValue

app = Flask(__name__)
# All workers have the key, and so do those after a reload: a key made at random would log everybody out.
app.secret_key = os.environ.get("SECRET_KEY", "only for this example")


@app.get("/")
def visits() -> ResponseReturnValue:
    """Count the visits of a client in its cookie, which any worker can read."""
    session["visits"] = session.get("visits", 0) + 1
    return f"This is your visit {session['visits']}.\n"


@app.get("/factors/<int:number>")
def factors(number: int) -> ResponseReturnValue:
    """Return the prime factors of a number."""
    if number > 10**14:
        abort(400, "too large for this example")
    return jsonify(factors=list(factors_of(number)), worker=os.getpid())


@app.post("/sum")
def sum_of_form() -> ResponseReturnValue:
    """Add the numbers of a form, and go to the factors of their sum."""
    return redirect(
        url_for("factors", number=request.form.get("a", 0, int) + request.form.get("b", 0, int))
    )


@app.post("/upload")
def upload() -> ResponseReturnValue:
    """Return the size of each file in a form."""
    return jsonify({name: len(file.read()) for name, file in request.files.items()})


@app.get("/source")
def source() -> ResponseReturnValue:
    """Send this file; the kernel copies it to the client, and a browser that has it already gets a 304."""
    return send_file(__file__, mimetype="text/plain", conditional=True)


@app.get("/count")
def count() -> ResponseReturnValue:
    """Send a body that is made piece by piece."""
    return (f"{number}\n" for number in range(5)), {"Content-Type": "text/plain"}


def factors_of(number: int) -> Iterator[int]:
    """Yield the prime factors of a number."""
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            yield divisor
            number //= divisor
        divisor += 1
    if number > 1:
        yield number
