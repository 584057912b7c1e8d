"""What this image of the master has that its next image takes over, and a trial leaves alone (master)."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from prefork.host.endpoint import Endpoint
from prefork.host.handover import Inventory
from prefork.host.named_socket import SocketName
from prefork.host.process import process
from prefork.reloading.binding import bound_sockets
from prefork.workers.files import Identity, identity_of
from prefork.workers.spec import WorkerSpec


class Holdings:
    """The sockets of this process, and its files. endpoints: where the metrics process answers, by setting."""

    def __init__(self, spec: WorkerSpec, endpoints: Mapping[str, Endpoint]) -> None:
        self._listeners = spec.listeners
        self._endpoints = endpoints
        self.metrics_dir = None if spec.metrics_dir is None else os.fsencode(spec.metrics_dir)

    @property
    def adoptable(self) -> tuple[int, ...]:
        """The descriptors of the sockets that the next image's servers take by their address."""
        kept = self.kept
        return tuple(one.fd for one in self._listeners if one.is_socket and one.fd not in kept)

    @property
    def kept(self) -> tuple[int, ...]:
        """The descriptors of the sockets that the program knows by their number."""
        inherited = {one.fd for one in self._listeners if one.is_inherited}
        return tuple(sorted(inherited.union(process.systemd_sockets.still_open())))

    @property
    def others(self) -> tuple[int, ...]:
        """The descriptors of the sockets that the program has bound beside the pool."""
        endpoints = [one.fd for one in self._endpoints.values()]
        return tuple(bound_sockets([*self.adoptable, *self.kept, *endpoints]))

    def socket_files(self) -> dict[int, Identity]:
        """Return the file of each Unix socket that is handed over, by descriptor."""
        files = {one.fd: one.file for one in self._listeners}
        files.update((fd, SocketName.of(fd).file) for fd in self.others)
        return {fd: file for fd, file in files.items() if file is not None}

    def inventory(self) -> Inventory:
        """Return all of it by name, for a trial."""
        files = self.socket_files()
        pidfile = None if process.pidfile is None else identity_of(process.pidfile)
        more = [pidfile, *(one.file for one in self._endpoints.values())]
        return Inventory(
            sockets=tuple(_name_of(fd, files) for fd in self.adoptable),
            kept=self.kept,
            endpoints={setting: one.address for setting, one in self._endpoints.items()},
            pidfile=pidfile,
            others=tuple(_name_of(fd, files) for fd in self.others),
            files=(*files.values(), *(one for one in more if one is not None)),
            metrics_dir=self.metrics_dir,
        )


def _name_of(fd: int, files: dict[int, Identity]) -> SocketName:
    return msgspec.structs.replace(SocketName.of(fd), file=files.get(fd))
