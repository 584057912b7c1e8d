"""A Django project in one file: Django's admin with a database, on a pool.

    $ export DJANGO_DATABASE=/tmp/shop.sqlite3 ADMIN_PASSWORD=secret
    $ prefork -w 2 examples/web/django_app.py

The admin is at http://127.0.0.1:8000/admin/, for the user ``admin``. Its style sheets are static files, which prefork
does not serve: the page README.md beside this file says what does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import django
from django.conf import settings

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

settings.configure(
    # All workers have the key, and so do those after a reload: a key made at random would log everybody out.
    SECRET_KEY=os.environ.get("SECRET_KEY", "only for this example"),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("DJANGO_DATABASE", "django.sqlite3"),
            # Several workers write: each waits for the others, instead of finding the database locked.
            "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        }
    },
    STATIC_URL="static/",
    USE_TZ=True,
)
django.setup()

from django.contrib import admin  # noqa: E402 - needs the settings
from django.contrib.auth.models import Group, User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connections  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402


def groups(_request: HttpRequest) -> HttpResponse:
    """Return how many groups there are, and the worker that has counted them."""
    return JsonResponse({"groups": Group.objects.count(), "worker": os.getpid()})


urlpatterns = [path("", groups), path("admin/", admin.site.urls)]


def prepare_database() -> None:
    """Make the tables and the user ``admin`` where they are missing.

    The module is loaded once, in the master. A connection to the database must not be shared by processes, so the
    master closes the one that it has used, and each worker opens its own at its first request.
    """
    call_command("migrate", verbosity=0)
    password = os.environ.get("ADMIN_PASSWORD")
    if password and not User.objects.filter(username="admin").exists():
        User.objects.create_superuser("admin", password=password)
    connections.close_all()


prepare_database()
application = get_wsgi_application()
