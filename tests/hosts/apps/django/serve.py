"""Settings, users, the login and a form, which the page leaves to the reader."""

import json
import os
import sys

import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=[
        "middleware.messagebus_visitor",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ROOT_URLCONF="serve",
    SECRET_KEY=os.environ["SECRET_KEY"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": ["."]}],
)
sys.modules["serve"] = sys.modules["__main__"]
django.setup()
call_command("migrate", verbosity=0)

import messagebus  # noqa: E402
import posts  # noqa: E402, F401
import urls  # noqa: E402
import views  # noqa: E402
from django.contrib.auth import login  # noqa: E402
from django.contrib.auth.models import Group, User  # noqa: E402
from django.core.servers.basehttp import run  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402

for number in (42, 43, 44):
    User.objects.create_user(f"user-{number}", id=number)
Group.objects.create(id=7, name="staff").user_set.add(42)
Group.objects.create(id=8, name="banned").user_set.add(44)


@csrf_exempt
def log_in(request, number):
    login(request, User.objects.get(id=number))
    return JsonResponse({})


@csrf_exempt
def say(request):
    said = json.loads(request.body)
    messagebus.publish("/topic/1", said["text"], **said["audience"])
    return JsonResponse({})


urlpatterns = [
    *urls.urlpatterns,
    path("login/<int:number>", log_in),
    path("logout", csrf_exempt(views.log_out)),
    path("", lambda request: JsonResponse({})),
    path("say", say),
]
run("127.0.0.1", int(sys.argv[1]), get_wsgi_application(), threading=True)
