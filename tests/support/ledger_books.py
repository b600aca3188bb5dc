"""The books of one txn, kept from its records as plain JSON: a second opinion that shares no code with the broker.

It is written from docs/wire.md and docs/adr/0010-long-work.md, slowly and plainly, with dicts. What it does not accept it names
and goes on, so that one fault does not hide the next.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import rfc8785

Json = dict[str, Any]
UNITS = ("usd_micros", "tokens", "calls")
NOTHING: Json = {"usd_micros": 0, "tokens": 0, "calls": 0}
CALL: Json = {"usd_micros": 0, "tokens": 0, "calls": 1}
WHOLE = ("unknown", "cancelled")
"""Outcomes that are charged all that was held."""


class Violation(NamedTuple):
    """A promise that was broken. ``rule`` is its short name, ``where`` the txn with the record or hop."""

    rule: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.where}: {self.why}"


def sealed(record: Json) -> str:
    """The hash that a record must have."""
    return hashlib.sha256(rfc8785.dumps({key: value for key, value in record.items() if key != "hash"})).hexdigest()


PERSONAL = {
    "txn.opened": ["user", "auth", "token", "issuer", "roles", "groups"], "hop.opened": ["facts.roles", "facts.groups"],
    "hop.parked": ["reason"], "hop.closed": ["reason"], "approval.requested": ["user", "reason"],
    "approval.decided": ["user", "who", "auth", "reason", "token"], "grant.revoked": ["who", "why"], "txn.closed": ["who"],
}  # fmt: skip


def veil(record: Json) -> str:
    """What the next record must say in ``veil``: of a record with a ``blind`` in which something personal stands."""
    if not record.get("blind"):
        return ""
    shown = {**record, "blind": ""}
    for field in PERSONAL.get(record["kind"], []):
        name, _, inner = field.partition(".")
        holder = (record.get(name) or {}) if inner else record
        value = holder.get(inner or name)
        if value:
            salt = hmac.digest(bytes.fromhex(record["blind"]), field.encode(), "sha256")
            put = {"withheld": hmac.new(salt, rfc8785.dumps(value), "sha256").hexdigest()}
            shown[name] = {**shown[name], inner: put} if inner else put
    return hashlib.sha256(rfc8785.dumps(shown)).hexdigest() if shown != {**record, "blind": ""} else ""


def plus(one: Json, other: Json) -> Json:
    """A sum; what no JSON number holds exactly is held at the largest that one does."""
    return {unit: min(one[unit] + other[unit], 2**53 - 1) for unit in UNITS}


def minus(one: Json, other: Json) -> Json:
    return {unit: max(one[unit] - other[unit], 0) for unit in UNITS}


def least(one: Json, other: Json) -> Json:
    return {unit: min(one[unit], other[unit]) for unit in UNITS}


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()


def within(one: Json, other: Json) -> bool:
    return all(one[unit] <= other[unit] for unit in UNITS)


class Account:
    """One hop, or the opening of the txn: what it was given, and where that is."""

    def __init__(self, record: Json, parent: Account | None, limit: Json) -> None:
        self.hop: str = record["hop"]
        self.parent = parent
        self.limit = dict(limit)
        self.spent, self.held, self.overrun = dict(NOTHING), dict(NOTHING), dict(NOTHING)
        self.passed = dict(NOTHING)
        self.state = "open"
        self.revoked = False
        self.n = 1
        self.exp: int = record["exp"]
        self.depth: int = record.get("depth", 0)
        self.max_depth: int = record["max_depth"]
        self.holder: str = record["agent"] if parent is None else record["resource"].split("/")[1]
        self.kind: str = "agent" if parent is None else record["resource"].split("/")[0]
        self.open_below: set[str] = set()
        self.says: set[str] = set()
        """Labels of whatever it says, beside those of all that its holder knows."""
        self.lowers: set[str] = set()
        self.resource: str = record.get("resource", "")
        self.before: list[str] = record.get("before", [])
        """Of the opening: who stood above its agent in the tasks that it was detached from."""

    @property
    def chain(self) -> list[str]:
        """The principals from the user's first agent to who holds this."""
        here = list(self.upwards())
        return [*here[-1].before, *(account.holder for account in here[::-1])]

    @property
    def left(self) -> Json:
        return minus(minus(minus(self.limit, self.held), self.spent), self.overrun)

    def upwards(self) -> Iterator[Account]:
        here: Account | None = self
        while here is not None:
            yield here
            here = here.parent


class Approval:
    """A request, who said what to it, and which hop went on with it."""

    def __init__(self, record: Json) -> None:
        self.asked = record
        self.yes: dict[str, Json] = {}
        self.denied = False
        self.used_by = ""

    def enough(self) -> bool:
        """Whether everybody has approved whom a policy wants."""
        for need in self.asked["needs"]:
            role = need["role"]
            if sum(not role or role in said["roles"] for said in self.yes.values()) < need["count"]:
                return False
        return True


class Books:
    """A txn. Give it its records in the order of the stream; ``found`` has what was wrong with them."""

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.found: list[Violation] = []
        self.accounts: dict[str, Account] = {}
        self.records: list[Json] = []
        self.user = ""
        self.closed = False
        self._seq, self._hash, self._veil = -1, "0" * 64, ""
        self._used_keys: set[str] = set()
        self.knows: dict[str, set[str]] = {}
        """Labels of all that has reached a principal in this txn, or may have."""
        self.approvals: dict[str, Approval] = {}

    @property
    def root(self) -> Account | None:
        return next(iter(self.accounts.values()), None)

    def add(self, record: Json) -> None:
        """The next record of the stream."""
        self.records.append(record)
        try:
            self._chain(record)
            self._apply(record)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            self._say("chain.form", record, f"not a record: {error!r}")

    def _say(self, rule: str, record: Json, why: str) -> None:
        self.found.append(Violation(rule, f"{self.key[1]}#{record.get('seq')}", why))

    def _need(self, condition: bool, rule: str, record: Json, why: str) -> None:
        if not condition:
            self._say(rule, record, why)

    def _chain(self, record: Json) -> None:
        self._need(
            (record["tenant"], record["txn"]) == self.key, "chain.form", record, "of another txn than its subject"
        )
        self._need(record["seq"] == self._seq + 1, "chain.seq", record, f"seq {record['seq']} follows {self._seq}")
        self._need(record["prev"] == self._hash, "chain.prev", record, "prev is not the hash of the record before")
        self._need(record["hash"] == sealed(record), "chain.hash", record, "its hash is not that of its content")
        said = record.get("veil", "")
        self._need(said == self._veil, "chain.veil", record, "veil is not that of the record before")
        self._seq, self._hash, self._veil = record["seq"], record["hash"], veil(record)

    def _apply(self, record: Json) -> None:
        kind = record["kind"]
        known = {
            "txn.opened": self._opened, "hop.opened": self._hop_opened, "hop.closed": self._hop_closed,
            "grant.revoked": self._revoked, "txn.closed": self._txn_closed, "grant.renewed": self._renewed,
            "hop.parked": self._parked, "hop.resumed": self._resumed, "approval.requested": self._requested,
            "approval.decided": self._decided,
        }  # fmt: skip
        self._need(not self.closed, "use.after-close", record, f"{kind} after the txn was closed")
        if kind not in known:
            return self._say("chain.form", record, f"{kind} is no kind of record")
        self._need((self._seq == 0) == (kind == "txn.opened"), "chain.form", record, f"{kind} cannot stand here")
        known[kind](record)
        return None

    def _opened(self, record: Json) -> None:
        self.user = record["user"]
        self.accounts[record["hop"]] = Account(record, None, record["budget"])
        self._jti(record, 1)
        self.knows[record["agent"]] = set(record.get("labels", ()))

    def known(self, who: str) -> set[str]:
        return self.knows.setdefault(who, set())

    # Labels, by docs/labels.md

    def _sent(self, record: Json, account: Account, caller: str) -> None:
        """An opening or a resumption: what is sent has the labels of all that its caller knows, and the answer may come at once."""
        sent, brings = set(record.get("labels", ())), set(record.get("brings", ()))
        missing = self.known(caller) - sent - set(record.get("lowered", ()))
        self._need(not missing, "labels.lost", record, f"sent without {sorted(missing)}, which {caller} knows")
        account.says |= sent | brings
        account.lowers = set(record.get("lowers", ()))
        agent = account.kind == "agent"
        self.known(account.holder).update(sent if agent else sent - brings)
        self._flow()

    def _flow(self) -> None:
        """Whoever waits for a hop may hear all that its callee knows, but for what an endorser may take away in the end."""
        grew = True
        while grew:
            grew = False
            for account in self.accounts.values():
                if account.parent is not None and account.state != "closed":
                    above = self.known(account.parent.holder)
                    new = (account.says | self.known(account.holder)) - account.lowers - above
                    above |= new
                    grew = grew or bool(new)

    def _told(self, record: Json, account: Account) -> None:
        """A closing, or a request for an input: what came back has the labels of whatever the hop says."""
        labels, lowered = set(record.get("labels", ())), set(record.get("lowered", ()))
        self._need(lowered <= account.lowers, "labels.lowered", record, f"nobody may lower {sorted(lowered)}")
        missing = (account.says | self.known(account.holder)) - labels - lowered
        heard = record["kind"] == "hop.closed" or record.get("request_digest")
        self._need(not (heard and missing), "labels.lost", record, f"came back without {sorted(missing)}")
        if account.parent is not None:
            self.known(account.parent.holder).update(labels)

    def _jti(self, record: Json, n: int) -> None:
        wanted = f"{self.key[1]}.{record['hop']}.{n}"
        self._need(record["jti"] == wanted, "grant.unbound", record, f"jti is {record['jti']}, expected {wanted}")

    def _usable(self, record: Json, account: Account) -> None:
        """Nothing under what is closed, parked or revoked, up to the root."""
        for above in account.upwards():
            self._need(
                above.state == "open", "use.after-close", record, f"under hop {above.hop}, which is {above.state}"
            )
            self._need(not above.revoked, "use.after-revoke", record, f"under hop {above.hop}, which was revoked")

    def _hold(self, record: Json, parent: Account, budget: Json) -> None:
        fits = within(budget, parent.left)
        self._need(fits, "budget.overspent", record, f"holds {budget}, hop {parent.hop} has {parent.left} left")
        self._need(within(CALL, budget), "budget.overspent", record, "a hop costs at least one call")
        parent.held = plus(parent.held, budget)
        for above in parent.upwards():
            total = plus(above.held, above.spent)
            self._need(within(total, above.limit), "budget.overspent", record, f"hop {above.hop} exceeds its limit")

    def _hop_opened(self, record: Json) -> None:
        parent = self.accounts.get(record["parent"])
        if parent is None:
            return self._say("chain.form", record, f"there is no hop {record['parent']}")
        self._need(record["hop"] not in self.accounts, "hop.opened-twice", record, "the hop was opened before")
        self._usable(record, parent)
        self._jti(record, 1)
        self._need(
            record["caller"] == parent.holder, "grant.unbound", record, "the caller does not hold the parent's grant"
        )
        self._need(record["depth"] == parent.depth + 1, "chain.form", record, "depth is not its parent's and one")
        deep = record["depth"] <= record["max_depth"] <= parent.max_depth
        self._need(deep, "grant.wider", record, "deeper than its parent allows")
        self._need(record["exp"] <= parent.exp, "grant.wider", record, "it lives longer than its parent")
        if idem := record.get("idem"):
            self._need(idem not in self._used_keys, "hop.opened-twice", record, "its idempotency key was used before")
            self._used_keys.add(idem)
        self._approved(record, parent, record["resource"])
        self._hold(record, parent, record["budget"])
        account = Account(record, parent, record["budget"])
        account.spent = dict(CALL)
        self.accounts[record["hop"]] = account
        parent.open_below.add(record["hop"])
        self._sent(record, account, record["caller"])
        return None

    def _mine(self, record: Json, *states: str) -> Account | None:
        """The account a record is about, where it is one that can be in ``states``."""
        account = self.accounts.get(record["hop"])
        if account is None or account.parent is None:
            self._say("chain.form", record, f"there is no hop {record['hop']}")
            return None
        said = f"{record['kind']} of hop {record['hop']}, which is {account.state}"
        self._need(account.state in states, "use.after-close", record, said)
        return account

    def _settled(self, record: Json, account: Account) -> None:
        """The charge of closing or parking, by the arithmetic of docs/wire.md. What parked children were charged stays in it."""
        running = [
            hop for hop in account.open_below if record["kind"] == "hop.closed" or self.accounts[hop].state == "open"
        ]
        self._need(not running, "use.after-close", record, f"hops are open below it: {sorted(running)}")
        used, free = plus(account.spent, record["cost"]), minus(account.limit, account.held)
        whole = record.get("outcome") in WHOLE
        spent = account.limit if whole else plus(least(used, free), account.held)
        overrun = plus(account.overrun, minus(used, free))
        said = f"spent {record['spent']}, it settles at {spent}"
        self._need(record["spent"] == spent, "budget.settled", record, said)
        self._need(
            record["overrun"] == overrun, "budget.settled", record, f"overrun {record['overrun']}, it is {overrun}"
        )
        if account.parent is not None:  # of which it may have been told a part when the hop parked
            account.parent.overrun = plus(account.parent.overrun, minus(record["overrun"], account.passed))

    def _hop_closed(self, record: Json) -> None:
        account = self._mine(record, "open", "parked")
        if account is None or account.parent is None or account.state == "closed":
            return
        self._settled(record, account)
        self._told(record, account)
        parent = account.parent
        parent.held = minus(parent.held, account.limit)
        parent.spent = plus(parent.spent, record["spent"])
        parent.open_below.discard(account.hop)
        account.state = "closed"
        self._flow()
        self._need(within(parent.spent, parent.limit), "budget.overspent", record, f"hop {parent.hop} spent too much")

    def _requested(self, record: Json) -> None:
        account = self.accounts.get(record["hop"])
        if account is None:
            return self._say("chain.form", record, f"there is no hop {record['hop']}")
        self._usable(record, account)
        self._need(record["id"] not in self.approvals, "approval.reused", record, "the id was used before")
        said = (record["chain"], record["user"], record["caller"]) == (account.chain, self.user, account.holder)
        self._need(said, "approval.unbound", record, "chain, user and caller are not those of its hop")
        self._need(bool(record["needs"]), "approval.unbound", record, "no policy demands it")
        self._need(len(self.approvals) < 100, "approval.flood", record, "more requests than a txn may have")
        self.approvals[record["id"]] = Approval(record)
        return None

    def _decided(self, record: Json) -> None:
        approval = self.approvals.get(record["id"])
        if approval is None:
            return self._say("approval.unbound", record, f"there is no request {record['id']}")
        asked = approval.asked
        self._need(record["request"] == asked["hash"], "approval.unbound", record, "it is not about that request")
        self._need(_seconds(record["at"]) < asked["exp"], "approval.late", record, "the request had expired")
        self._need(not (approval.denied or approval.enough()), "approval.late", record, "it was settled before")
        self._need(record["user"] not in approval.yes, "approval.twice", record, "the same person said so before")
        if record["verdict"] == "deny":
            approval.denied = True
            return None
        own = any(need["four_eyes"] for need in asked["needs"]) and record["user"] == self.user
        self._need(not own, "approval.own", record, "the user approves their own call")
        approval.yes[record["user"]] = record
        return None

    def _approved(self, record: Json, parent: Account, resource: str) -> None:
        """What is opened with an approval is what was approved, once, in time."""
        if (name := record.get("approval")) is None:
            self._need(not record.get("lowered"), "labels.lowered", record, "nobody approved that labels are taken")
            return
        approval = self.approvals.get(name)
        if approval is None:
            return self._say("approval.missing", record, f"nobody was asked for {name}")
        asked = approval.asked
        self._need(not approval.used_by, "approval.twice", record, f"hop {approval.used_by} used it before")
        self._need(approval.enough() and not approval.denied, "approval.missing", record, "it was not approved")
        in_time = all(_seconds(record["at"]) < said["exp"] for said in approval.yes.values())
        self._need(in_time, "approval.late", record, "the approval had expired")
        mine = {
            "args_digest": record["args_digest"], "resource": resource, "chain": parent.chain, "caller": parent.holder,
            "definition": record.get("definition", asked["definition"]), "input_digest": record.get("input_digest", ""),
            "resumes": record["hop"] if record["kind"] == "hop.resumed" else None,
        }  # fmt: skip
        for field, value in mine.items():
            self._need(asked[field] == value, "approval.other", record, f"its {field} is not the one approved")
        self._need(
            record["decision"]["revision"] == asked["decision"]["revision"], "approval.other", record, "other policies"
        )
        self._need(
            set(record["labels"]) <= set(asked["labels"]), "approval.other", record, "more labels than were shown"
        )
        vouched = set(record.get("lowered", ())) <= set(asked.get("endorses", ()))
        self._need(vouched, "labels.lowered", record, "more is taken away than was approved")
        asker = self.accounts[asked["hop"]]
        self._need(not any(one.revoked for one in asker.upwards()), "use.after-revoke", record, "who asked was revoked")
        approval.used_by = record["hop"]
        return None

    def _revoked(self, record: Json) -> None:
        account = self.accounts.get(record["hop"])
        if account is None:
            return self._say("chain.form", record, f"there is no hop {record['hop']}")
        self._need(account.state != "closed", "use.after-close", record, "the hop is closed")
        account.revoked = True
        return None

    def _txn_closed(self, record: Json) -> None:
        root = self.root
        if root is None:
            return
        self._need(not root.open_below, "hop.left-open", record, f"hops are open: {sorted(root.open_below)}")
        totals = (record["spent"], record["overrun"]) == (root.spent, root.overrun)
        self._need(totals, "budget.settled", record, "spent and overrun are not those of the tree")
        self.closed, root.state = True, "closed"

    def _renewed(self, record: Json) -> None:
        account = self.accounts.get(record["hop"])
        if account is None:
            return self._say("chain.form", record, f"there is no hop {record['hop']}")
        self._usable(record, account)
        self._jti(record, account.n + 1)
        above = account.parent
        self._need(
            above is None or record["exp"] <= above.exp, "grant.wider", record, "it lives longer than its parent"
        )
        account.n, account.exp = account.n + 1, record["exp"]
        return None

    def _parked(self, record: Json) -> None:
        account = self._mine(record, "open")
        if account is None or account.parent is None:
            return
        self._settled(record, account)
        account.parent.held = plus(minus(account.parent.held, account.limit), record["spent"])
        account.limit, account.spent = dict(record["spent"]), minus(record["spent"], account.held)
        account.overrun = account.passed = dict(record["overrun"])
        account.state = "parked"
        self._told(record, account)
        self._flow()

    def _resumed(self, record: Json) -> None:
        account = self._mine(record, "parked")
        if account is None or account.parent is None:
            return
        self._usable(record, account.parent)
        self._need(not account.revoked, "use.after-revoke", record, "the hop was revoked")
        self._jti(record, account.n + 1)
        self._need(record["exp"] <= account.parent.exp, "grant.wider", record, "it lives longer than its parent")
        self._approved(record, account.parent, account.resource)
        self._hold(record, account.parent, record["budget"])
        account.limit, account.spent = plus(account.limit, record["budget"]), plus(account.spent, CALL)
        account.n, account.exp, account.state = account.n + 1, record["exp"], "open"
        self._sent(record, account, account.parent.holder)
