"""The user and the groups that the workers run as.

The master looks the names up before it forks, so that a worker needs no database of users, and so
that a wrong setting is an error of the start. The worker drops its privileges after the fork and
before any code of the application runs in it.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys

import msgspec

from prefork.workers.errors import SettingsError
from prefork.workers.settings import Settings


class Account(msgspec.Struct, frozen=True):
    """What a login as a user would put into the environment: HOME, USER and LOGNAME."""

    name: str
    home: str


class Credentials(msgspec.Struct, frozen=True):
    """A user and groups, as numbers.

    account: of another user than the master's; None for the master's own user, and for a uid without an account.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    account: Account | None = None

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
        if self.account is not None:
            _move_in(self.account)


def _move_in(account: Account) -> None:
    """Have the environment be that of this user, as far as it would name places of the former one.

    HOME, USER and LOGNAME are what a login would set. A folder for temporary files is given up where this
    user cannot write to it: ``tempfile`` finds another one then, also if it has chosen one already.
    """
    os.environ.update(HOME=account.home, USER=account.name, LOGNAME=account.name)
    for variable in ("TMPDIR", "TEMP", "TMP"):
        if variable in os.environ and not _is_writable(os.environ[variable]):
            del os.environ[variable]
    tempfile = sys.modules.get("tempfile")
    chosen = getattr(tempfile, "tempdir", None)
    if tempfile is not None and chosen is not None and not _is_writable(chosen):
        tempfile.tempdir = None  # type: ignore[attr-defined]  # a variable of the module


def _is_writable(folder: str | bytes) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


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
    account, uid, gid = _user(user, gid_of_group, source)
    if os.geteuid() != 0:
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return None
        key, value = ("user", user) if user is not None else ("group", group)
        me = f"this process runs as uid {os.geteuid()}"
        allowed = f"only root can give its workers another identity, and {me}; start as root, or leave {key} out"
        raise SettingsError(key, value, source, allowed)
    groups = os.getgrouplist(account.name, gid) if account is not None else [gid]
    return Credentials(uid, gid, tuple(groups), account if uid != os.geteuid() else None)


def _user(
    user: str | int | None, group: int | None, source: str
) -> tuple[Account | None, int, int]:
    """Return account, uid and gid of a user, with the main group where ``group`` is None.

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
    return (
        Account(entry.pw_name, entry.pw_dir),
        entry.pw_uid,
        entry.pw_gid if group is None else group,
    )
