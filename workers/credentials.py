"""The user and the groups that the workers run as.

The master looks the names up before it forks, so that a worker needs no database of users, and so
that a wrong setting is an error of the start. The worker drops its privileges after the fork and
before any code of the application runs in it.
"""

from __future__ import annotations

import grp
import os
import pwd

import msgspec

from prefork.workers.errors import SettingsError
from prefork.workers.settings import Settings


class Credentials(msgspec.Struct, frozen=True):
    """A user and groups, as numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    def assume(self) -> None:
        """Become this user for good (worker, metrics process).

        Raises PermissionError where the user cannot be taken on, or could be left again. Groups
        come first, because only a privileged process may set them.
        """
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if (
            os.getresuid() != (self.uid,) * 3
            or os.getresgid() != (self.gid,) * 3
            or set(os.getgroups()) != set(self.groups)
        ):
            raise PermissionError(f"privileges were not dropped to uid {self.uid}, gid {self.gid}")
        if self.uid != 0 and _can_return():
            raise PermissionError("privileges could be taken back")


def _can_return() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True


def credentials_of(settings: Settings) -> Credentials | None:
    """Return what the workers have to become; None where they stay what the master is (master).

    Raises SettingsError for a user that is not known here, and where this process may not change
    it.
    """
    return credentials_for(settings.user, settings.group, "settings")


def credentials_for(
    user: str | int | None, group: str | int | None, source: str
) -> Credentials | None:
    """Return what ``credentials_of()`` returns for these two settings.

    source: where the value of ``user``, or of ``group`` if there is no user, came from, for errors.
    """
    if user is None and group is None:
        return None
    gid_of_group = grp.getgrnam(group).gr_gid if isinstance(group, str) else group
    name, uid, gid = _user(user, gid_of_group, source)
    if os.geteuid() != 0:
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return None
        key, value = ("user", user) if user is not None else ("group", group)
        me = f"this process runs as uid {os.geteuid()}"
        allowed = f"only root can give its workers another identity, and {me}; start as root, or leave {key} out"
        raise SettingsError(key, value, source, allowed)
    groups = os.getgrouplist(name, gid) if name is not None else [gid]
    return Credentials(uid, gid, tuple(groups))


def _user(user: str | int | None, group: int | None, source: str) -> tuple[str | None, int, int]:
    """Return name, uid and gid of a user, with the main group where ``group`` is None.

    A uid without an account has no main group. It needs the setting ``group``, or it would keep
    root's.
    """
    if user is None:
        return None, os.geteuid(), os.getegid() if group is None else group
    try:
        entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        if group is None or isinstance(user, str):
            raise SettingsError(
                "user", user, source, "a user of this machine; a bare uid needs the group, too"
            ) from None
        return None, user, group
    return entry.pw_name, entry.pw_uid, entry.pw_gid if group is None else group
