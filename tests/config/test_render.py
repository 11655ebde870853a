"""Settings as text."""

from __future__ import annotations

import tomllib
from pathlib import Path

from gateway.config import Config, DeepgramConfig, RegionConfig, ServerConfig, load
from gateway.config.render import defaults_toml, env_names, render_toml, settings

ROOT = Path(__file__).parents[2]


def test_the_file_that_ships() -> None:
    """config.toml is what `gateway print-config --defaults` prints."""
    assert (ROOT / "config.toml").read_text() == defaults_toml()


def test_every_key_is_in_it() -> None:
    """The defaults as text hold each key of the tree and its reason."""
    text = defaults_toml()
    for setting in settings(Config()):
        assert f"\n{setting.path.rpartition('.')[2]} = " in text
        assert f"# {setting.description}" in text
    assert "# Client port; 0 lets the kernel choose. (at least 0, at most 65535)\nport = 8080\n" in text


def test_round_trip(tmp_path: Path) -> None:
    """What is printed loads to the same settings, awkward characters included."""
    config = Config(
        server=ServerConfig(origins=("https://a", 'https://"b"'), drain=1e-7),
        deepgram=DeepgramConfig(
            regions=(RegionConfig(name="a", url="http://[::1]:8080"), RegionConfig(name="b"))
        ),
    )
    path = tmp_path / "c.toml"
    path.write_text(render_toml(config))
    assert load(str(path), {}) == config


def test_characters_that_toml_escapes() -> None:
    """A value with quotes, backslashes, controls and letters of any script comes back as it was."""
    odd = 'a"b\\c\x00\x7f\n\u2028é😀'
    config = Config(deepgram=DeepgramConfig(ca_file=odd))
    assert tomllib.loads(render_toml(config))["deepgram"]["ca_file"] == odd


def test_a_proxys_login_is_masked() -> None:
    """The text can be shown to others."""
    text = render_toml(Config(deepgram=DeepgramConfig(proxy="http://user:p@ss@proxy:3128")))
    assert 'proxy = "http://***@proxy:3128"' in text
    assert "p@ss" not in text


def test_each_variable_sets_its_key() -> None:
    """Every listed variable is one that loading takes."""
    names = [name for name, _ in env_names()]
    assert len(names) == len(set(names)) == len(list(settings(Config())))
    values = {setting.path: setting.value for setting in settings(Config())}
    for name, value in zip(names, values.values(), strict=True):
        text = str(next(iter(value), "x")) if isinstance(value, tuple) else str(value)
        load(None, {name: text})
    assert "GATEWAY_DEEPGRAM__REGIONS__0__URL" in names
