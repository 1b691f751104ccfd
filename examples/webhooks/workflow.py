"""One webhook on its way: tried again by the kind of error, given up to the owner's mailbox."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from enum import StrEnum
from http import HTTPStatus

from aegis import Context, Retry, RetryAfter, Workflow, transition

RECEIVER = os.environ.get("WEBHOOKS_RECEIVER", "http://127.0.0.1:8001")


class Away(Exception):
    """The receiver does not answer, or has trouble of its own: it may be better in a moment."""


class Gone(Exception):
    """The receiver does not want it: it will not be better."""


class Stage(StrEnum):
    """How far a webhook has come."""

    DUE = "due"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    OWNER_TOLD = "owner told"


class Delivery(Workflow, name="example.Delivery"):
    """A webhook for one receiver."""

    state: Stage = Stage.DUE
    receiver: str
    body: str

    @transition(
        Stage.DUE,
        Stage.DELIVERED,
        retry=Retry(max_attempts=3, delay=0.2, on=(Away,), never=(Gone,)),
        timeout=10,
        give_up=Stage.UNDELIVERED,
    )
    def deliver(self, ctx: Context) -> None:
        """Deliver it: up to three times while the receiver is away, once if it is gone."""
        post(self.receiver, self.body, key=ctx.key)

    @transition(Stage.UNDELIVERED, Stage.OWNER_TOLD, retry=Retry(max_attempts=2, delay=0.2))
    def tell_owner(self, ctx: Context) -> None:
        """Tell whoever owns the receiver; where that fails, it is for a person to say `aegis retry`."""
        post("owner", f"not delivered to {self.receiver}", key=ctx.key)


def post(receiver: str, body: str, *, key: str) -> None:
    """Post it, and raise what says how to go on.

    Raises:
        RetryAfter: the receiver said when to come back; it does not count as an attempt.
        Gone: it is never coming back.
        Away: anything else.

    """
    request = urllib.request.Request(  # noqa: S310 - http, as configured
        f"{RECEIVER}/{receiver}", data=body.encode(), headers={"Idempotency-Key": key}
    )
    try:
        urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - likewise
    except urllib.error.HTTPError as error:
        with error:
            match error.code:
                case HTTPStatus.TOO_MANY_REQUESTS:
                    raise RetryAfter(float(error.headers["Retry-After"]), counts=False) from error
                case HTTPStatus.GONE:
                    raise Gone(str(error)) from error
                case _:
                    raise Away(str(error)) from error
    except OSError as error:
        raise Away(str(error)) from error
