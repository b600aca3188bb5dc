"""What ``remit init`` writes: a configuration in which every key stands with its default and a word on it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from remit_broker.adapters.errors import ConfigError
from remit_broker.config import FILE

TEMPLATE = """\
# Remit. Every key that exists stands here; what is commented out is the default.
# Paths are relative to this file. Check it with: remit check

issuer = "{issuer}"          # `iss` of every grant; changing it invalidates grants that are out
# data = "data"              # keys, ledger, index: mode 0700, back it up, let nobody read it
# policies = "policies"      # *.cedar, see docs/policy.md

[bus]
# url = ""                   # an external NATS server; empty runs an embedded one
# port = 0                   # of the embedded one; 0 takes a free port
# sync = "always"            # "always": an acknowledged record survives a power cut; "default": up to two minutes may not
# callout = "broker"         # who says which agents may connect: "broker", or "process": remit callout
# connection_ttl = 86400.0   # seconds until a connection proves itself again
# ledger_bytes = 0           # cap of the ledger, 0 is none; at nine tenths of it nothing new is opened
# replicas = 1               # of the ledger's streams; 3 or 5 need an external cluster

[http]
# host = "127.0.0.1"         # loopback only
port = {port:<22}# 0 takes a free port at each start
auth = {auth:<22}# "local": the OS user, by the token in data/keys/local.token; "open": everybody on this
                             # machine, as one user; "issuer": by a user's token, with roles
# open_user = "everybody"    # who that is with "open"
# hosts = []                 # ["remit.example.com"]: names beside loopback that the header Host may say; needs "issuer"
# stop_all = []              # ["corp:ann"]: operators by an issuer who may stop all tenants at once, as records name them

[mcp]                        # clients of MCP, at /mcp and by remit mcp
# agent = "mcp-client"       # who calls for a client that brings no grant, in chains and in policies
# scopes = ["mcp/**"]        # what a session of a client may call, as far as policy permits it
# budget = "usd=10,tokens=1000000,calls=2000"   # what a session may use up
# call_ttl = 600.0           # longest time of one call in seconds
# idle = 900.0               # seconds without a call after which a session goes on in another task
# view = "tools"             # what clients see at /mcp: all "tools", or three that "search" them
# sub_agents = []            # names that clients may say their own sub-agents have
# trace = []                 # ["git"]: servers that are told the trace of each call (traceparent)

{identity}
[limits]
# hop_ttl = 3600.0           # longest life of one hop in seconds, at most 8 h; one that says nothing of it gets 60 s
# orphan_grace = 30.0        # seconds after its deadline until an abandoned hop is closed
# txn_idle = 900.0          # seconds without a record or an open hop after which a task is closed
# replica_silence = 30.0     # seconds without a heartbeat after which a replica is taken for dead
# calls_per_second = 200.0   # per caller, on average
# burst = 400                # per caller, at once
# target_calls_per_second = 0.0   # per callee; 0 is no limit
# concurrency = 2048         # hops in hand per broker process
# result_bytes = 16777216    # largest result, where its caller takes it in parts
# connections_per_agent = 256   # on all servers together, of one agent or MCP server
# drain = 5.0                # seconds a stopping broker gives to running hops
# allow_cycles = []          # ["planner>critic"]: pairs that may close a loop

[results]
# ttl = 900.0                # seconds for which a result is kept, encrypted, whose caller asked for that
# bytes = 1073741824         # of all of them; beyond, nothing more is kept

[approvals]                  # calls that policy permits only with a person's approval
# ttl = 3600.0               # seconds for which a request waits, its arguments kept encrypted
# use = 900.0                # seconds within which an approval is used
# four_eyes = false          # whether nobody approves a call that is made on their own behalf
# url = ""                   # where approvers find this broker, such as "https://remit.example"; empty: http
# webhook = ""               # told of each request, signed: "https://chat.example/hook"; public addresses only
# webhook_allow = []         # ["10.1.0.0/16"]: networks that are not public and may be sent to all the same

[log]                        # where checkpoints of the log of all records go
# witnesses = {{}}             # {{ "https://witness.example" = "name+id+base64" }}: C2SP tlog-witness
# witness_allow = []         # ["10.1.0.0/16"]: networks that are not public and may be sent to all the same
# file = ""                  # each is appended to it: best on a disk where nothing is written over
# tsa = ""                   # "https://tsa.example/tsr": an authority that stamps checkpoints with the time (RFC 3161)
# tsa_every = 3600.0         # seconds between two stamps at least

[vault]                      # arguments and results, kept encrypted for the user of each task; see docs/audit.md
# on = false
# arguments = 2592000.0      # seconds for which each is kept; 0: not at all
# results = 2592000.0
# bytes = 4294967296         # of all of them; beyond, nothing more is kept
# keys = ""                  # the folder of the users' keys; empty: vault in the data folder
# key_file = ""              # what those keys are sealed with; empty: a key drawn from data/keys/results.key
# tenants = {{}}               # such as {{ acme = {{ arguments = 86400.0, results = 0.0 }} }}: other times

[oauth]                      # /oauth on the HTTP edge, see docs/oauth.md
# url = ""                   # where clients find this broker, such as "https://remit.example"; empty: http
# client_auth = "optional"   # "required": tokens are exchanged only for agents that prove themselves with their nkey
# registration = "open"      # whether programs that people log in with register themselves: "open" or "closed"
# redirects = []             # ["https://claude.example/back"]: where browsers may be sent back to beside this machine
# client_documents = []      # ["https://editor.example/*"]: clients that are a document on the web
# documents_allow = []       # ["10.1.0.0/16"]: networks that are not public and may be fetched from all the same
# access_ttl = 3600          # life of an access token in seconds
# login_ttl = 43200          # of a login, refreshed or not

[secrets]                    # of users for MCP servers: remit secrets set
# key_file = ""              # what they are sealed with; empty: a key drawn from data/keys/results.key

# [backends.NAME]            # what that MCP server is shown of the user it is called for: kind, header, scheme; see docs/credentials.md

[traces]
# endpoint = ""              # OTLP/HTTP, such as "http://127.0.0.1:4318"; OTEL_EXPORTER_OTLP_ENDPOINT wins
# ui = ""                    # where people look at them, such as "http://127.0.0.1:16686": remit chain links there

[content]
# presidio = []              # ["PERSON"]: entities that Presidio looks for too; it must be installed
# presidio_language = "en"   # the language it is told
# labels = {{}}                # such as {{ pii = ["personal"] }}: of data in which that was found, and not replaced

[policy]
# environment = ""           # what policies see as context.environment, such as "production"

[tool_groups]                # what policies see as ToolGroup::"payments"
# "payments" = ["mcp/bank/*", "mcp/*/refund"]

[prices]                     # what a call holds and, where nothing is reported, costs; the longest pattern wins
# "mcp/*" = "usd=0.0005,calls=1"

[models]                     # what calls of models cost by hop.meter: dollars per million tokens, and per call without usage
# "default" = "in=15,out=75,call=0.25"
# "gpt-4o*" = "in=2.5,out=10,call=0.05"

[labels]                     # of what a target answers; they follow the data, see docs/labels.md
# "mcp/web/*" = ["untrusted", "web"]
# "mcp/crm/*" = ["confidential", "customer:{{customer_id}}"]   # with an argument of the call in it
# "mcp/hr/*#salary" = ["confidential"]   # of what is sent, where it has this argument

# [[endorsers]]              # who may take labels away again: name, target, lowers, schema, bits; see docs/labels.md

[caps]                       # what may be used up per minute, hour, day or month, over all tasks
# "user".default.day = "usd=5,calls=2000"
# "user"."ann".month = "usd=50"
# "agent".default.hour = "tokens=2000000"
# "tool"."mcp/mail/*".hour = "calls=20"
# "tenant".default.month = "usd=500"

[tenants]                    # beside the one called default; each has a NATS account of its own, and names may repeat
# "acme" = {{}}

[rates]                      # other rates than those of [limits], per replica
# "caller"."batch-*" = "1000/s, burst=2000"   # each caller's own
# "target"."mcp/mail/*" = "20/minute, burst=5"   # one for all that it matches
"""


REAL = """\
[[issuers]]                  # who proves users; docs/identity.md has examples for several providers
name = "corp"                # in messages and records
issuer = "https://login.example.com"   # `iss` of its tokens and of its discovery document, exactly
audience = ["remit"]         # what its tokens for this broker say in `aud`
# accept = ["at+jwt"]        # "at+jwt": access tokens of RFC 9068; "jwt": those that only say JWT; "id": ID tokens
# algorithms = ["RS256"]     # what it signs with; the token has no say in it
# clients = []               # applications whose tokens count (azp, client_id); empty is every one
# agents = ["*"]             # agents that may hold the tasks of its users
# require = { hd = "example.com" }     # what claims must say
# trust_unverified_email = false       # a user named by an e-mail address that the issuer did not verify
# jwks = ""                  # where its keys are, if it has no discovery document
# ca = ""                    # a file with the certificates to trust for it; empty: those of the system
# skew = 30.0                # seconds by which clocks may differ
# max_age = 86400.0          # oldest token in seconds
# max_ttl = 28800            # longest task in seconds
# refresh = 300.0            # seconds after which its keys are fetched again
# outage = 3600.0            # seconds beyond that for which known keys are used while it does not answer
# refetch = 10.0             # seconds between two fetches for the sake of unknown keys
# login = { client_id = "remit", secret_file = "login.secret" }   # people log in there for their programs; docs/oauth.md
claims = { user = "sub", roles = "roles", groups = "groups" }   # where users, roles and groups are in a token
[issuers.operators]          # which users may do what on /api, by role:…, group:… or user:…
viewer = ["role:remit-viewer"]
approver = ["role:remit-approver"]
operator = ["role:remit-operator"]
admin = ["role:remit-admin"]
"""

DEVELOPMENT = """\
[development]                # never where real users are
# issuer = false             # an issuer inside the broker for users of this table: remit users token ann
# beside_real = false        # also beside a real issuer
# operators = { admin = ["user:ann"] }   # with http.auth = "issuer"
# [development.users.ann]
# roles = ["analyst"]
# groups = ["research"]
# tenant = "default"
"""


def starter(auth: str, port: int) -> str:
    """The text of a new remit.toml."""
    issuer = f"http://127.0.0.1:{port}" if port else "http://127.0.0.1"
    real = REAL if auth == "issuer" else commented(REAL)
    return TEMPLATE.format(issuer=issuer, port=port, auth=f'"{auth}"', identity=f"{real}\n{DEVELOPMENT}")


def commented(text: str) -> str:
    """Every line that is none yet as a comment."""
    return "".join(line if line.startswith("#") else f"# {line}" for line in text.splitlines(keepends=True))


def write_starter(folder: Path, auth: str, port: int) -> Path:
    """Write remit.toml and policies/default.cedar. Raises :class:`ConfigError` where there is a configuration already."""
    file = (folder / FILE).absolute()
    if file.exists():
        raise ConfigError(f"{file} exists", "edit it, or choose another folder")
    write_policies(file.parent / "policies")
    file.write_text(starter(auth, port), encoding="utf-8")
    return file


def write_policies(folder: Path, policies: Sequence[tuple[str, str]] = ()) -> None:
    """Write ``(file name, text)`` pairs, or the starter policy and its cases where none are given; what exists is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    starter = resources.files("remit_broker").joinpath("policies", "default.cedar")
    cases = resources.files("remit_broker").joinpath("policies", "starter.toml")
    written = [
        ("default.cedar", starter.read_text(encoding="utf-8")),
        ("tests/starter.toml", cases.read_text(encoding="utf-8")),
    ]
    for name, text in policies or written:
        file = folder / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
