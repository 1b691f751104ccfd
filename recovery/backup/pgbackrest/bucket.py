"""Who we are to a bucket: found as everywhere else, by boto3."""

from __future__ import annotations

from typing import Final

from ....core.errors import BackupFailed

# Credentials that come and go with the machine: pgBackRest asks for these itself, each time.
_OF_THE_MACHINE: Final = {"iam-role", "container-role"}


def credentials(what: str) -> dict[str, str]:
    """Return pgBackRest's options, without their prefix.

    Raises:
        BackupFailed: boto3 is not installed, or finds none.

    """
    try:
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - an extra, and slow to load
        from botocore.session import Session  # noqa: PLC0415
    except ImportError:
        raise BackupFailed(what, "boto3 is not installed", "pip install 'aegis-workflows[s3]'") from None
    try:
        found = Session().get_credentials()
        if found is None:
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or have a role or a file as boto3 finds it"
            raise BackupFailed(what, "nobody says who we are to the bucket", remedy)
        if found.method in _OF_THE_MACHINE:
            return {"key-type": "auto"}
        frozen = found.get_frozen_credentials()
    except BotoCoreError as error:
        raise BackupFailed(what, f"its credentials cannot be read ({error})", "see your AWS configuration") from None
    told = {"key": frozen.access_key, "key-secret": frozen.secret_key, "token": frozen.token}
    return {name: value for name, value in told.items() if value}
