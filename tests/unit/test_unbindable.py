"""What ``prefork check`` and ``prefork run`` find of addresses before anything is bound."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from prefork import BindError, SettingsError
from prefork.host.addresses import Address
from prefork.host.unbindable import refuse_unbindable
from prefork.master import lot_process
from prefork.usable import refuse_unusable

if TYPE_CHECKING:
    from pathlib import Path


def reason(*texts: str, metrics: str | None = None) -> str:
    """Return why the addresses are refused, "" where they are not."""
    try:
        refuse_unbindable(
            [Address.parse(text) for text in texts],
            {} if metrics is None else {"metrics": Address.parse(metrics)},
        )
    except BindError as error:
        return str(error)
    return ""


def test_addresses_that_overlap() -> None:
    """Addresses that no process can bind at the same time are refused; others are not."""
    together = [
        [":80", "127.0.0.1:80"],
        ["[::]:80", "[::1]:80"],
        ["udp://127.0.0.1:80", "udp://127.0.0.1:80"],
        ["unix:@a", "unix:@a"],
    ]
    for texts in together:
        assert "overlap" in reason(*texts), texts
        assert reason(texts[0]) == reason(texts[1]) == "", texts
    assert "(metrics)" in reason(":80", metrics="127.0.0.1:80")
    apart = [
        "127.0.0.1:80",
        "127.0.0.2:80",
        "[::1]:80",
        "udp://127.0.0.1:80",
        "127.0.0.1:81",
        "unix:@a",
    ]
    assert reason(*apart, "127.0.0.1:0", "127.0.0.1:0", "fd://3", "fd://3", metrics="unix:@b") == ""


def test_places_where_no_socket_can_be(tmp_path: Path) -> None:
    """A Unix socket needs its folder, and no other file in its place; a socket that is there may be a live one."""
    (tmp_path / "file").touch()
    assert "make the folder" in reason(f"unix:{tmp_path}/nowhere/socket")
    assert "make the folder" in reason(metrics=f"unix:{tmp_path}/nowhere/socket")
    assert "no socket is there" in reason(f"unix:{tmp_path}/file")
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(f"{tmp_path}/live")
        assert reason(f"unix:{tmp_path}/live", f"unixgram:{tmp_path}/new") == ""
        (tmp_path / "live").unlink()


def test_host_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name that cannot be resolved is refused, with the words of the resolver."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert reason("no-such-host:80").endswith("name or service not known; check the host name")


def test_more_parked_connections_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``max_parked`` that the limit of descriptors does not allow is refused with its origin."""
    monkeypatch.setattr(lot_process, "descriptors_allowed", lambda: 1064)
    refuse_unusable({"max_parked": 1000}, lambda key: f"flag --{key}")
    with pytest.raises(
        SettingsError, match=r"1001 \(from flag --max_parked\) is refused: at most 1000"
    ):
        refuse_unusable({"max_parked": 1001}, lambda key: f"flag --{key}")
