"""The SDK of Remit: attach an agent, serve skills, call within a grant."""

from remit.agent import Agent
from remit.caller import Call
from remit.credentials import CredentialsError
from remit.detached import Detached
from remit.errors import InputNeeded, Refused, ToolFailed, refused, text
from remit.hop import Hop
from remit.run import Run
from remit.task import Task, open_task
from remit_schemas.budget import Budget
from remit_schemas.envelope import Event, Progress
from remit_schemas.errors import Code

__all__ = [
    "Agent",
    "Budget",
    "Call",
    "Code",
    "CredentialsError",
    "Detached",
    "Event",
    "Hop",
    "InputNeeded",
    "Progress",
    "Refused",
    "Run",
    "Task",
    "ToolFailed",
    "open_task",
    "refused",
    "text",
]
