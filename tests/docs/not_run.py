"""What the documentation shows and no test can run, each with the reason.

It is parsed at least: ``test_every_block.py`` does that, and finds entries that no page has any
more.
"""

from __future__ import annotations

from collections.abc import Mapping

NOT_RUN: Mapping[tuple[str, str], str] = {
    ("clients/python/README.md", "pip install messagebus-client"): (
        "fetches from PyPI; tests/clients/test_python_package.py installs the same package"
    ),
    ("docs/admin.md", "ssh -L"): "needs another machine",
    ("docs/deploying.md", "python3 -m venv /opt/messagebusd"): (
        "writes to /opt; tests/deploy/test_release.py installs the wheel"
    ),
    ("docs/deploying.md", "helm install"): (
        "needs a cluster; tests/deploy/test_chart.py renders the chart with these values"
    ),
    ("docs/hosts/laravel.md", "->withMiddleware("): "needs all of Laravel",
    ("docs/hosts/laravel.md", "Route::post("): "needs all of Laravel",
    ("docs/hosts/laravel.md", "{!! json_encode"): "needs all of Laravel",
    ("docs/jwt.md", "use Firebase\\JWT\\JWT;"): "Debian has no package of the library",
    ("docs/releasing.md", "make build"): "takes minutes; tests/deploy/test_release.py builds",
    ("docs/releasing.md", "uv venv"): "needs other versions of Python",
    ("docs/soak.md", "make soak"): "takes ten minutes; tests/soak/test_soak.py is its short form",
    ("docs/moving-from-the-gem.md", "messagebusd tail"): "runs until Ctrl-C; tested as a command",
    (
        "docs/moving-from-the-gem.md",
        "doctor --config bus.toml\n",
    ): "tests/docs/test_doctor.py runs it",
    ("docs/moving-from-the-gem.md", "messagebusd shadow"): (
        "needs the gem's application; tests/deploy/test_moving.py mirrors and compares"
    ),
    ("docs/moving-from-the-gem.md", "--public-url"): "tests/docs/test_operations.py runs it",
    ("docs/operations.md", "git clone"): "fetches from GitHub; tests/ruby is run by hand",
}
"""By page and words of the block."""
