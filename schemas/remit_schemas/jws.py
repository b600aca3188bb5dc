"""Compact JWS (RFC 7515 §7.1) as Remit accepts it: three canonical base64url parts, one algorithm, a fixed header.

Nothing in a token chooses how the token is checked. The header is compared with the configuration of the key it names,
and a member that is not on the list refuses the token, so that no extension (``crit``, ``b64``, ``jku``, ``jwk``,
``x5u`` …) has to be known to be harmless.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from remit_schemas.base64url import decode, encode
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.keys import PublicKey, SigningKey

MAX_TOKEN: Final = 8 * 1024
"""Largest compact serialisation in characters, checked before anything is parsed."""

MAX_HEADER: Final = 512
"""Largest decoded header in bytes: three short members fit, nothing else has to."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The protected header: exactly these members (RFC 7515 §4.1), each a short string."""

    alg: Annotated[str, msgspec.Meta(max_length=16)]
    typ: Annotated[str, msgspec.Meta(max_length=32)]
    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Parts(NamedTuple):
    """A compact JWS taken apart. Nothing of it has been checked but its form."""

    signing_input: bytes
    header: bytes
    payload: bytes
    signature: bytes


def split(token: str) -> Parts:
    """Take a compact serialisation apart.

    Raises TOO_LARGE (rule ``grant.size``) before parsing, GRANT_INVALID (``grant.form``) for any other form.
    """
    if len(token) > MAX_TOKEN:
        raise refusal(
            Code.TOO_LARGE, f"a token of {len(token)} characters, at most {MAX_TOKEN} are accepted", rule="grant.size",
            ask="ask for a grant with fewer or shorter scopes",
        )  # fmt: skip
    try:
        signing_input, _, signature = token.encode("ascii").rpartition(b".")
        header, payload = signing_input.split(b".")
        if not (header and payload and signature):
            raise ValueError("an empty part")
        return Parts(signing_input, decode(header), decode(payload), decode(signature))
    except ValueError as error:
        raise _invalid("grant.form", "not three parts of canonical base64url", str(error)) from None


def parse_header(data: bytes) -> Header:
    """The protected header. Raises GRANT_INVALID (``grant.header``) unless it has exactly ``alg``, ``typ``, ``kid``."""
    try:
        return msgspec.convert(loads(data, max_bytes=MAX_HEADER, max_depth=1), Header, strict=True)
    except Refusal as error:
        raise _invalid("grant.header", f"the header is refused: {error.body.message}", error.body.rule) from None
    except msgspec.ValidationError as error:
        raise _invalid("grant.header", "the header must have exactly alg, typ and kid", str(error)) from None


def check_signature(parts: Parts, header: Header, key: PublicKey | None) -> PublicKey:
    """The key that signed. Raises GRANT_INVALID: ``grant.kid``, ``grant.alg`` or ``grant.signature``.

    An unknown ``kid`` is answered from one look-up, without cryptography and without fetching keys.
    """
    if key is None or key.kid != header.kid:
        raise _invalid("grant.kid", "signed with a key that is not in the key set")
    # INVARIANT: the key says which algorithm, the token only repeats it (test_alg_is_that_of_the_key).
    if header.alg != key.alg:
        raise _invalid("grant.alg", f"alg must be that of the key, {key.alg}")
    if not key.verify(parts.signing_input, parts.signature):
        raise _invalid("grant.signature", "the signature does not fit")
    return key


def sign(payload: bytes, typ: str, key: SigningKey) -> str:
    """The compact serialisation of ``payload``, signed with ``key``."""
    signing_input = f"{_header(key.public.alg, typ, key.kid)}.{encode(payload)}"
    return f"{signing_input}.{encode(key.sign(signing_input.encode()))}"


@functools.lru_cache(maxsize=64)
def _header(alg: str, typ: str, kid: str) -> str:
    return encode(_encode_json(Header(alg, typ, kid)))


_encode_json: Any = msgspec.json.Encoder().encode


def _invalid(rule: str, message: str, cause: str = "") -> Refusal:
    return refusal(
        Code.GRANT_INVALID, message, rule=rule, ask="present a grant as the broker issued it, unchanged", cause=cause
    )
