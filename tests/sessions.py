"""What tests do with a session of any protocol: copy it, and see how it refuses a message."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

from protocol_fsm import ProtocolError


class Opens(Protocol):
    def open(self, message: bytes, /) -> object: ...


AnySession = TypeVar("AnySession", bound=Opens)


def clone(session: AnySession) -> AnySession:
    """Copy a session as copy.copy would, which sessions refuse because they hold keys."""
    twin = object.__new__(type(session))
    for name, value in vars(session).items():
        is_own = name == "fsm" or isinstance(value, (dict, list))
        vars(twin)[name] = copy.copy(value) if is_own else value
    return twin


def error_of(session: Opens, message: bytes) -> ProtocolError | None:
    """Return the error with which a session refuses a message, if it does."""
    try:
        session.open(message)
    except ProtocolError as error:
        return error
    return None


def refusal(session: Opens, message: bytes) -> ProtocolError:
    """Return the error with which a session must refuse a message."""
    error = error_of(session, message)
    assert error is not None, "it was accepted"
    return error
