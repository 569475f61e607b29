"""What changes when settings are read again, and what stays until a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from messagebusd.errors import ConfigurationError
from messagebusd.settings import LoadedSettings, Settings, load_settings, merge
from messagebusd.settings.keys import KEYS
from messagebusd.settings.reload import NEEDS_RESTART, needs_restart


def load(folder: Path, text: str) -> LoadedSettings:
    path = folder / "bus.toml"
    path.write_text(text)
    return load_settings(path, {}, {})


def test_keys_that_change_are_named_and_others_not(tmp_path: Path) -> None:
    running = load(tmp_path, '[poll]\nmax_body = 1000\n[log]\nlevel = "debug"')
    read = load(tmp_path, '[api]\nkey = "secret"\n[log]\nlevel = "debug"\n[poll]\nmax_channels = 7')
    loaded, changed, left = merge(running, read)
    assert set(changed) == {"poll.max_body", "poll.max_channels", "api.key"}
    assert left == ()
    assert loaded == read


def test_what_needs_a_restart_stays_with_its_source(tmp_path: Path) -> None:
    running = load(tmp_path, '[server]\nlisten = "127.0.0.1:1"\n[log]\nlevel = "debug"')
    read = load(
        tmp_path,
        '[log]\nlevel = "error"\n[backend]\nkind = "redis"\nclear_every = 2\n'
        '[server]\nlisten = "127.0.0.1:2"\nworkers = 4\nshutdown_timeout = 5',
    )
    loaded, changed, left = merge(running, read)
    assert set(changed) == {"log.level", "server.shutdown_timeout"}
    assert set(left) == {"server.listen", "server.workers", "backend.kind", "backend.clear_every"}
    settings = loaded.settings
    assert str(settings.server.listen) == "127.0.0.1:1"
    assert (settings.server.workers, settings.backend) == (1, Settings().backend)
    assert (settings.log.level, settings.server.shutdown_timeout) == ("error", 5.0)
    assert loaded.sources["server.listen"] == running.sources["server.listen"]
    assert loaded.sources["backend.kind"] == "default"
    # Told again as long as file and daemon differ, and taken for no change.
    assert merge(loaded, read) == (loaded, (), left)


def test_settings_that_do_not_fit_what_stays_are_refused(tmp_path: Path) -> None:
    running = load(tmp_path, '[server]\nlisten = "0.0.0.0:1"\n[api]\nkey = "secret"')
    read = load(tmp_path, '[server]\nlisten = "127.0.0.1:1"')
    with pytest.raises(ConfigurationError) as caught:
        merge(running, read)
    assert caught.value.problems == [
        "api.key is required, because the API listens on 0.0.0.0:1",
        "server.listen cannot change without a restart",
    ]


def test_every_entry_of_the_list_is_a_key_or_the_beginning_of_some() -> None:
    for entry in NEEDS_RESTART:
        assert entry in KEYS or any(name.startswith(entry) for name in KEYS), entry
    # SPEC 8 names what has to change at once
    for name in ("api.keys", "channels", "poll.max_body", "cors.max_age", "log.level"):
        assert not needs_restart(name)
    assert not any(needs_restart(name) for name in KEYS if name.startswith("lookup."))
