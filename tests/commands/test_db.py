"""`gateway db`, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from tests.fakes.postgres import Postgres
from tests.test_cli import refused, run


@pytest.fixture(params=["sqlite", "postgresql"])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """A store without tables."""
    if request.param == "sqlite":
        return {"GATEWAY_STORE__URL": f"sqlite:///{tmp_path}/gateway.db"}
    server: Postgres = request.getfixturevalue("postgres")
    return {"GATEWAY_STORE__URL": server.database()}


def test_up_and_down(env: dict[str, str]) -> None:
    """Each says where it has come to."""
    for arguments, revision in (
        (("current",), "no tables"),
        (("upgrade",), "0003"),
        (("upgrade", "0003"), "0003"),
        (("current",), "0003"),
        (("downgrade", "-1"), "0002"),
        (("downgrade", "base"), "no tables"),
    ):
        assert run("db", *arguments, env=env) == (0, f"{revision}\n", "")


def test_by_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'[store]\nurl = "sqlite:///{tmp_path}/x.db"\n')
    assert run("db", "upgrade", "-c", str(path))[0] == 0
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    assert "transcripts" in inspect(engine).get_table_names()
    engine.dispose()


def test_what_cannot_be_done(env: dict[str, str], tmp_path: Path) -> None:
    """One line; nothing has changed."""
    assert "Can't locate revision" in refused("db", "upgrade", "9999", env=env)
    assert "REVISION" in refused("db", "downgrade", env=env)
    assert "ACTION" in refused("db", env=env)
    assert "store.url: is 'none'" in refused("db", "current", env={"GATEWAY_STORE__URL": "none"})
    nowhere = {"GATEWAY_STORE__URL": f"sqlite:///{tmp_path}/file/x.db"}
    (tmp_path / "file").write_text("")
    assert "File exists" in refused("db", "current", env=nowhere, code=1)
    password = {"GATEWAY_STORE__URL": "postgresql://me:secret@127.0.0.1:1/x"}
    line = refused("db", "current", env=password, code=1)
    assert "me:***@127.0.0.1:1" in line
    assert "secret" not in line
