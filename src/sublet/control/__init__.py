"""Reaching a running machine by its name: a socket in the user's runtime directory, and what it answers."""

from sublet.control.client import call
from sublet.control.directory import RunningMachine, check_name, claim, running
from sublet.control.operations import Call, Handler, Operations
from sublet.control.server import ControlServer

__all__ = [
    "Call",
    "ControlServer",
    "Handler",
    "Operations",
    "RunningMachine",
    "call",
    "check_name",
    "claim",
    "running",
]
