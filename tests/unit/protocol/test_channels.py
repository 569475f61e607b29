"""Channel and site names."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from messagebusd.errors import InvalidChannel, MalformedRequest
from messagebusd.protocol.channels import (
    escape,
    qualify,
    unescape,
    unqualify,
    validate_channel,
    validate_site,
)

# The separators' characters are frequent, the separators themselves are not.
NAMES = st.text(st.sampled_from("$|123/aä ") | st.characters(exclude_categories=["C"]), min_size=1)


def valid(check, name):
    try:
        check(name)
    except (InvalidChannel, MalformedRequest):
        return False
    return True


@given(NAMES, st.none() | NAMES)
def test_every_valid_name_comes_back(channel, site):
    assume(valid(validate_channel, channel))
    assume(site is None or valid(validate_site, site))
    shared = channel.startswith("/global/")
    assert unqualify(qualify(channel, site)) == (channel, None if shared else site)


@given(NAMES, st.none() | NAMES)
def test_every_valid_name_comes_back_from_a_payload(channel, site):
    assume(valid(validate_channel, channel))
    assume(site is None or valid(validate_site, site))
    stored = qualify(channel, site)
    assert unescape(escape(stored)) == stored


@pytest.mark.parametrize("channel", ["/a$|", "/a$$123", "/a$$123|b", "/a$|$b", "/a$$123$$"])
def test_names_that_run_into_the_separators(channel):
    with pytest.raises(InvalidChannel):
        validate_channel(channel)


@given(NAMES, NAMES, st.none() | NAMES, st.none() | NAMES)
def test_two_channels_never_share_a_stored_name(a, b, site_a, site_b):
    for name in (a, b):
        assume(valid(validate_channel, name) and not name.startswith("/global/"))
    for site in (site_a, site_b):
        assume(site is None or valid(validate_site, site))
    assert (qualify(a, site_a) == qualify(b, site_b)) == ((a, site_a) == (b, site_b))


@pytest.mark.parametrize(
    "channel", ["foo", "/foo|bar", "/föö", "/a b", "/$", "/[x]", "/$|x", "a" * 512]
)
def test_usable(channel):
    validate_channel(channel)


@pytest.mark.parametrize("site", ["", "a|b", "a$|$b", "a\n", "x" * 129])
def test_unusable_sites(site):
    with pytest.raises(MalformedRequest):
        validate_site(site)
