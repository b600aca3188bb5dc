"""The kinds of secrets that are looked for: what each looks like, and how to tell one from what only looks like it.

A pattern is RE2 over bytes and uses ASCII classes only. Where it has a group, the group is the secret and the rest says
what makes it one. A pattern begins at a word boundary and says how the secret ends, so that part of a longer word is none.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

Check = Callable[[bytes], bool]


class Kind(NamedTuple):
    """One kind of secret. ``check`` says no to matches that cannot be one; kinds earlier in the table win where two match."""

    name: str
    pattern: str
    check: Check | None = None


def entropy(text: bytes) -> float:
    """Shannon entropy of the bytes of ``text`` in bits per byte."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _random(bits: float) -> Check:
    return lambda text: entropy(text) >= bits


def _mixed(text: bytes) -> bool:
    """Looks drawn rather than written: letters and digits, and little repetition."""
    return entropy(text) >= 3.0 and any(48 <= byte <= 57 for byte in text) and text.upper() != text.lower()


def _json_segment(text: bytes) -> bool:
    """Whether the first segment is base64url of a JSON object that names an algorithm: a JOSE header (RFC 7515)."""
    first = text.split(b".", 1)[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(first + b"=" * (-len(first) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


def _numeric_id(text: bytes) -> bool:
    """A Discord token begins with the base64 of the numeric id of the bot."""
    first = text.split(b".", 1)[0]
    try:
        return base64.urlsafe_b64decode(first + b"=" * (-len(first) % 4)).isdigit()
    except (binascii.Error, ValueError):
        return False


_PLACEHOLDERS: Final = (
    b"example",
    b"changeme",
    b"placeholder",
    b"your",
    b"xxxx",
    b"****",
    b"....",
    b"redacted",
    b"dummy",
)


def _chosen(text: bytes) -> bool:
    """Neither a placeholder nor a variable: what somebody really put where a password goes."""
    lower = text.lower()
    return not any(word in lower for word in _PLACEHOLDERS) and text[:1] not in b"$<{%[(" and entropy(text) >= 2.0


def _password(text: bytes) -> bool:
    """Chosen, and not a word or a piece of code: with letters and digits, without brackets, hardly repeating itself."""
    letters, digits = any(chr(byte).isalpha() for byte in text), any(48 <= byte <= 57 for byte in text)
    code = any(byte in b"()[]{};" for byte in text)
    return letters and digits and not code and entropy(text) >= 2.75 and _chosen(text)


def _in_url(text: bytes) -> bool:
    return _chosen(text) and text.lower() not in (b"password", b"passwd", b"secret")


_E: Final = r"(?:[^0-9A-Za-z_]|$)"  # behind one


def _word(body: str) -> str:
    return rf"\b({body})\b"


KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        "private_key",
        # Without its end too (cut off, or escaped line ends); a body never runs into the next block, so this stays linear.
        r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[\sA-Za-z0-9+/=:,.\\()_]|-[A-Za-z0-9])*"
        r"(?:-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----)?",
    ),
    Kind("aws_access_key", _word(r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}")),
    Kind(
        "aws_secret_key",
        r"(?i)aws.{0,20}?(?:secret|sk|private).{0,20}?[\s'\":=]([0-9A-Za-z/+]{40})(?:[^0-9A-Za-z/+=]|$)",
        _mixed,
    ),
    Kind("github_fine_grained_token", _word(r"github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}")),
    Kind("github_token", _word(r"gh[pousr]_[0-9A-Za-z]{36,}")),
    Kind("github_app_token", _word(r"v1\.[0-9a-f]{40}"), _mixed),
    Kind(
        "gitlab_token",
        rf"\b(gl(?:pat|dt|rt|ft|soat|imt|cbt|ptt|agent|oas)-[0-9A-Za-z_-]{{20,64}}(?:\.[0-9a-z.]{{2,20}})?){_E}",
    ),
    Kind("slack_token", rf"\b(xox[abeoprs]-(?:[0-9A-Za-z]+-){{1,5}}[0-9A-Za-z-]{{10,}}){_E}"),
    Kind("slack_app_token", _word(r"xapp-[0-9]-[A-Z0-9]+-[0-9]+-[0-9a-f]{30,}")),
    Kind("slack_webhook", r"(hooks\.slack\.com/(?:services|workflows|triggers)/[0-9A-Za-z/]{30,90})"),
    Kind("stripe_key", _word(r"(?:sk|rk)_(?:live|test|prod)_[0-9A-Za-z]{16,}")),
    Kind("stripe_webhook_secret", _word(r"whsec_[0-9A-Za-z]{32,64}")),
    Kind("google_api_key", rf"\b(AIza[0-9A-Za-z_-]{{35}}){_E}"),
    Kind("google_oauth_secret", rf"\b(GOCSPX-[0-9A-Za-z_-]{{28}}){_E}"),
    Kind("google_oauth_token", r"\b(ya29\.[0-9A-Za-z_-]{20,})"),
    Kind("anthropic_key", rf"\b(sk-ant-(?:api|admin|sid|oat|ort)[0-9]{{2}}-[0-9A-Za-z_-]{{32,}}){_E}"),
    Kind("openrouter_key", _word(r"sk-or-v1-[0-9a-f]{64}")),
    Kind(
        "openai_key",
        rf"\b(sk-(?:(?:proj|svcacct|admin|None)-[0-9A-Za-z_-]{{40,}}|[0-9A-Za-z]{{20}}T3BlbkFJ[0-9A-Za-z]{{20}}|[0-9A-Za-z]{{48}})){_E}",
        _mixed,
    ),
    Kind("npm_token", _word(r"npm_[0-9A-Za-z]{36}")),
    Kind("pypi_token", r"\b(pypi-AgE[0-9A-Za-z_-]{50,})"),
    Kind("rubygems_token", _word(r"rubygems_[0-9a-f]{48}")),
    Kind("docker_token", rf"\b(dckr_(?:pat|oat)_[0-9A-Za-z_-]{{27,40}}){_E}"),
    Kind("twilio_key", _word(r"SK[0-9a-f]{32}"), _mixed),
    Kind("twilio_auth_token", r"(?i)twilio.{0,30}?(?:token|secret|auth).{0,10}?\b([0-9a-f]{32})\b", _mixed),
    Kind("sendgrid_key", rf"\b(SG\.[0-9A-Za-z_-]{{22}}\.[0-9A-Za-z_-]{{43}}){_E}"),
    Kind("mailgun_key", r"\b(key-[0-9a-f]{32}|[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8})\b", _mixed),
    Kind("mailchimp_key", _word(r"[0-9a-f]{32}-us[0-9]{1,2}"), _mixed),
    Kind("azure_storage_key", r"(?i)AccountKey=([0-9A-Za-z/+]{86}==)", _random(4.0)),
    Kind("azure_sas_signature", r"[?&;]sig=([0-9A-Za-z%/+_-]{40,}(?:=|%3[dD]){0,2})", _mixed),
    Kind(
        "azure_client_secret",
        r"(?:[^0-9A-Za-z_~.-]|^)([0-9A-Za-z_~.-]{3}[78]Q~[0-9A-Za-z_~.-]{31,34})(?:[^0-9A-Za-z_~.-]|$)",
        _mixed,
    ),
    Kind("digitalocean_token", _word(r"do[opr]_v1_[0-9a-f]{64}")),
    Kind("huggingface_token", _word(r"(?:hf|api_org)_[A-Za-z]{34}"), _random(3.0)),
    Kind("telegram_bot_token", rf"\b([0-9]{{8,10}}:AA[0-9A-Za-z_-]{{33}}){_E}"),
    Kind(
        "discord_token",
        rf"\b([MNO][0-9A-Za-z_-]{{23,27}}\.[0-9A-Za-z_-]{{6}}\.[0-9A-Za-z_-]{{27,38}}){_E}",
        _numeric_id,
    ),
    Kind("discord_webhook", r"(discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/[0-9A-Za-z_-]{60,80})"),
    Kind("square_token", rf"\b(sq0(?:atp|csp|idp)-[0-9A-Za-z_-]{{22,43}}|EAAA[0-9A-Za-z_-]{{60}}){_E}"),
    Kind("shopify_token", _word(r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}")),
    Kind("databricks_token", _word(r"dapi[0-9a-f]{32}(?:-[0-9])?")),
    Kind("new_relic_key", _word(r"NRAK-[0-9A-Z]{27}")),
    Kind("linear_key", _word(r"lin_api_[0-9A-Za-z]{40}")),
    Kind("notion_token", _word(r"(?:ntn_[0-9A-Za-z]{40,50}|secret_[0-9A-Za-z]{43})"), _mixed),
    Kind("vault_token", rf"\b(hv[sbr]\.[0-9A-Za-z_-]{{24,}}){_E}"),
    Kind("nats_seed", _word(r"S[UAOCNX][A-Z2-7]{56}"), _random(3.5)),
    Kind("age_key", _word(r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}")),
    Kind("jwt", rf"\b(eyJ[0-9A-Za-z_-]{{10,}}\.[0-9A-Za-z_-]{{10,}}\.[0-9A-Za-z_-]{{16,}}){_E}", _json_segment),
    Kind(
        "url_password",
        r"\b[a-zA-Z][0-9A-Za-z+.-]{1,20}://[0-9A-Za-z_.~%+-]{0,64}:([!-.0-9:;=?A-Z_a-z~%^+-]{6,})@[0-9A-Za-z\[]",
        _in_url,
    ),
    Kind(
        "password",
        r"(?i)(?:pass(?:word|wd|phrase)|pwd|secret|api[_-]?key|apikey|access[_-]?key|auth[_-]?token|access[_-]?token"
        r"|client[_-]?secret|private[_-]?key)[a-z0-9_]{0,12}['\"]?\s{0,3}(?::=|=>|=|:)\s{0,3}['\"]?"
        r"([!#-&(-+./-9:;<=?-Z\[\]^_a-z{|}~-]{8,})",
        _password,
    ),
)
"""In the order in which they win."""

KEYED: Final = (
    r"(?i)^(?:.*[_.-])?(?:pass(?:word|wd|phrase)|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token"
    r"|refresh[_-]?token|client[_-]?secret|private[_-]?key|secret[_-]?key)$"
)
"""Names of members whose value is a secret by its name alone, if it looks like one."""


def looks_assigned(text: bytes) -> bool:
    """Whether ``text``, the whole value of a member with such a name, is a secret rather than a word or a remark."""
    word = text.isalpha() and (text.islower() or text.isupper() or text.istitle())
    return 8 <= len(text) <= 512 and not word and not any(byte in b" \t\r\n" for byte in text) and _chosen(text)
