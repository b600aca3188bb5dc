"""The two agents of the demonstration, as anybody would write them with the SDK."""

from __future__ import annotations

from typing import Any

from remit import Agent, Hop, Refused

PLANNER, RESEARCHER, DESK, SERVER = "planner", "researcher", "desk", "git"


def planner(path: str) -> Agent:
    """Plans, and has others do the work: it may call the researcher and nothing else."""
    me = Agent(PLANNER, credentials=path)

    @me.skill(needs=["agent/researcher/*", "agent/planner/*", "mcp/git/*"])
    async def plan(hop: Hop, question: str, repository: str) -> dict[str, Any]:
        """Answer a question about a repository."""
        await hop.progress(f"asking the researcher for {hop.user}")
        found = await hop.call(
            f"agent/{RESEARCHER}/history",
            repository=repository,
            scopes=["mcp/git/git_log", "mcp/git/git_reset", f"agent/{PLANNER}/plan"],
            budget="usd=0.02,calls=6",
        )
        return {"question": question, "commits": found["commits"], "refused": found["refused"]}

    @me.skill(needs=["agent/researcher/*"])
    async def overspend(hop: Hop, repository: str) -> str:
        """Ask for more than there is."""
        return await _code(hop.call(f"agent/{RESEARCHER}/history", repository=repository, budget="usd=100,calls=500"))

    @me.skill(needs=["agent/researcher/*"])
    async def leak(hop: Hop, note: str) -> str:
        """Send on what it was told, whatever it is."""
        return await _code(hop.call(f"agent/{RESEARCHER}/remember", note=note))

    @me.skill(needs=[f"agent/{RESEARCHER}/*"])
    async def ask_author(hop: Hop) -> str:
        """Whom to ask: the researcher knows an address, and tells of it."""
        return str(await hop.call(f"agent/{RESEARCHER}/author"))

    @me.skill(needs=[])
    async def mail(hop: Hop, text: str) -> str:
        """Would send a mail; the policy of the demonstration lets no chain do so that has read what anybody may have written."""
        return f"sent for {hop.user}: {text}"

    @me.skill(needs=[])
    async def publish(hop: Hop, what: str) -> str:
        """Would send it out; the policy of the demonstration has a person look at it first."""
        return f"published for {hop.user}: {what}"

    return me


def researcher(path: str) -> Agent:
    """Reads the history of a repository, and tries a few things it may not do."""
    me = Agent(RESEARCHER, credentials=path)

    @me.skill(needs=["mcp/git/git_log", "mcp/git/git_reset", f"agent/{PLANNER}/*"])
    async def history(hop: Hop, repository: str) -> dict[str, Any]:
        """The last commits, and what was refused on the way."""
        log = await hop.call(f"mcp/{SERVER}/git_log", repo_path=repository, max_count=3)
        refused = [
            await _code(hop.call(f"mcp/{SERVER}/git_commit", repo_path=repository, message="mine now")),
            await _code(hop.call(f"mcp/{SERVER}/git_reset", repo_path=repository)),
            await _code(hop.call(f"agent/{PLANNER}/plan", question="again?", repository=repository)),
        ]
        return {"commits": log, "refused": refused}

    @me.skill(needs=[])
    async def author(hop: Hop) -> str:
        """An address: personal data, which the policy of the demonstration has replaced wherever it goes."""
        return "ask " + "grace" + "@" + "example.com about it"

    @me.skill(needs=[])
    async def remember(hop: Hop, note: str) -> str:
        """Would keep a note."""
        return note

    return me


async def _code(call: Any) -> str:
    """The code that a call is refused with, or what it returned."""
    try:
        return str(await call)
    except Refused as no:
        return str(no.code)
