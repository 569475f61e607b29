"""Which site a Host stands for."""

import pytest

from messagebusd.http.sites import SiteMap
from messagebusd.identity.base import ANONYMOUS, Identity

SITES = SiteMap(
    {
        "forum.example": "forum",
        "*.example": "blogs",
        "*.deep.example": "deep",
        "[::1]": "here",
        "192.0.2.1": "address",
    }
)


@pytest.mark.parametrize(
    ("host", "site_id"),
    [
        ("forum.example", "forum"),
        ("FORUM.Example", "forum"),
        ("forum.example:8443", "forum"),
        ("forum.example.", "forum"),
        ("a.example", "blogs"),
        ("b.a.example", "blogs"),
        ("a.forum.example", "blogs"),
        ("a.deep.example", "deep"),
        ("deep.example", "blogs"),
        ("example", None),
        ("forum.example.evil", None),
        ("evilforum.example", "blogs"),
        ("forumxexample", None),
        ("[::1]:80", "here"),
        ("[::1]", "here"),
        ("192.0.2.1:80", "address"),
        ("*.example", "blogs"),
        ("", None),
        (":80", None),
        (".", None),
        ("[", None),
        ("forum.example/x", None),
        ("\udcff.net", None),
    ],
)
def test_hosts(host, site_id):
    assert SITES.site_of(host) == site_id


def test_only_who_has_no_site_is_placed():
    assert SITES.place(Identity(1, site_id="own"), "forum.example").site_id == "own"
    assert SITES.place(Identity(1), "forum.example") == Identity(1, site_id="forum")
    assert SITES.place(ANONYMOUS, "elsewhere.test") is ANONYMOUS
    assert SiteMap({}).place(ANONYMOUS, "forum.example") is ANONYMOUS


def test_what_is_too_long_for_a_name_is_not_looked_at():
    """Each dot is another look-up: a header of 8000 of them took 30 ms."""
    sites = SiteMap({"*.example": "blogs"})
    name = "a." * 122 + "example"
    assert (len(name), sites.site_of(name)) == (251, "blogs")
    assert sites.site_of(f"abc{name}") is None
