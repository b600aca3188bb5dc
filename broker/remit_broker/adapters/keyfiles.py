"""The broker's own keys, each in a file of its own, drawn once. The only place where keys are drawn.

``<folder>/keys/`` holds

* ``grant-<kid>.jwk`` — keys that sign grants, as private JWKs (RFC 8037) with ``created`` and ``retired`` (Unix seconds);
* ``checkpoint-<kid>.jwk`` — the same, for keys that sign checkpoints of the log;
* ``digest.key`` — 32 bytes, base64url: the master key of keyed digests;
* ``results.key`` — the same, for results that are kept;
* ``local.token`` — the bearer token that proves the local user;
* ``metrics.token`` — that of whoever scrapes metrics, where users are known by an issuer;
* ``nats-*.nk`` — nkey seeds: the callout's issuer (an account key, never used for grants), its curve key, and the broker's users.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.private_files import FOLDER_MODE, private_folder, read_private, sync_folder, write_private
from remit_broker.core import nkey
from remit_schemas.base64url import decode, encode
from remit_schemas.keys import CHECKPOINT, GRANT, SigningKey

KEYS: Final = "keys"
NATS_SEEDS: Final[dict[str, nkey.Prefix]] = {
    "issuer": "A", "xkey": "X", "core": "U", "bus": "U", "auth": "U", "sys": "U",
}  # fmt: skip
"""Which seeds there are, and of which kind."""

_FILE: Final = re.compile(r"(grant|checkpoint)-([A-Za-z0-9_-]{43})\.jwk")


@dataclass(frozen=True)
class DatedKey:
    """A signing key with its times in Unix seconds; ``retired`` is None while it signs or may sign."""

    key: SigningKey
    created: int
    retired: int | None


class KeyFiles:
    """Keys of one data folder, read once. Make with :meth:`open`."""

    def __init__(
        self,
        folder: Path,
        signers: tuple[DatedKey, ...],
        masters: tuple[bytes, bytes],
        token: str,
        seeds: dict[str, str],
    ) -> None:
        """``masters`` are the master keys of keyed digests and of kept results."""
        self.folder = folder
        self.signers = signers
        """All that sign, oldest first; the last one of a use that is not retired does."""
        self.digest_key, self.results_key = masters
        self.local_token = token
        self._seeds = seeds

    def __repr__(self) -> str:
        return f"KeyFiles({str(self.folder)!r})"

    @classmethod
    def open(cls, folder: Path | str, create: bool = False) -> KeyFiles:
        """Read the keys of ``folder``; with ``create``, draw all of them where there are none.

        Raises :class:`ConfigError` for a missing, damaged or shared file. A single missing file is never replaced: a new digest
        key or signing key would silently cut off what the lost one protected.
        """
        data = private_folder(Path(folder).absolute(), create=create)
        if create and not (data / KEYS).exists():
            _draw_all(data)
        keys = private_folder(data / KEYS, create=False)
        if create and not _signers(keys, CHECKPOINT):
            # Of a folder from before there were checkpoints. Old ones that a lost key signed stay what they are: unverifiable.
            _write_jwk(keys, _draw_jwk(CHECKPOINT, int(time.time())))
        seeds = {name: _seed(keys / f"nats-{name}.nk", prefix) for name, prefix in NATS_SEEDS.items()}
        masters = _raw32(keys / "digest.key"), _raw32(keys / "results.key")
        if not (grants := _signers(keys, GRANT)):
            raise ConfigError(f"no grant key in {keys}", "restore grant-*.jwk from a backup")
        return cls(data, grants + _signers(keys, CHECKPOINT), masters, _token(keys / "local.token"), seeds)

    @property
    def grant_keys(self) -> tuple[DatedKey, ...]:
        """Those that sign or signed grants."""
        return tuple(found for found in self.signers if found.key.public.use == GRANT)

    @property
    def signing(self) -> SigningKey:
        """The key that signs grants now."""
        return self._live(GRANT)

    @property
    def sealing(self) -> SigningKey:
        """The key that signs checkpoints now."""
        return self._live(CHECKPOINT)

    def _live(self, use: str) -> SigningKey:
        live = [found.key for found in self.signers if found.retired is None and found.key.public.use == use]
        if not live:
            raise ConfigError(f"no {use} key in {self.folder / KEYS} that is not retired", "run `remit keys rotate`")
        return live[-1]

    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517), retired ones too: what they signed must stay verifiable. With ``created`` and ``retired``."""
        return {"keys": [_public_jwk(found) for found in self.signers]}

    def seed(self, name: str) -> str:
        """The nkey seed ``issuer``, ``xkey``, ``core``, ``bus``, ``auth`` or ``sys``."""
        return self._seeds[name]

    def public(self, name: str) -> str:
        """The public nkey of :meth:`seed`."""
        return nkey.public_of(NATS_SEEDS[name], self._seeds[name])

    @property
    def token_file(self) -> Path:
        """Where local clients read the bearer token."""
        return self.folder / KEYS / "local.token"

    def metrics_token(self) -> str:
        """What a scraper of metrics is known by; drawn when it is first asked for. Raises :class:`ConfigError`."""
        path = self.folder / KEYS / "metrics.token"
        if not path.exists():
            write_private(path, encode(secrets.token_bytes(32)).encode())
        return _token(path)

    def rotate(self, now: int, uses: tuple[str, ...] = (GRANT, CHECKPOINT)) -> KeyFiles:
        """Draw new keys for ``uses`` and retire the others at ``now`` (Unix seconds); they still verify."""
        keys = self.folder / KEYS
        # The new ones first: a crash in between leaves two that may sign, never none.
        for use in uses:
            _write_jwk(keys, _draw_jwk(use, now))
        for found in self.signers:
            if found.retired is None and found.key.public.use in uses:
                path = keys / f"{found.key.public.use}-{found.key.kid}.jwk"
                _write_jwk(keys, {**_object(path), "retired": now})
        return KeyFiles.open(self.folder)


def new_user_seed() -> str:
    """A new nkey seed for an agent or server."""
    return nkey.seed_text("U", secrets.token_bytes(32))


def _draw_all(data: Path) -> None:
    """All keys in a new folder that gets its name last, so that an interrupted start leaves none, never some."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{KEYS}-", dir=data))
    try:
        fresh.chmod(FOLDER_MODE)
        for use in (GRANT, CHECKPOINT):
            _write_jwk(fresh, _draw_jwk(use, int(time.time())))
        write_private(fresh / "digest.key", encode(secrets.token_bytes(32)).encode())
        write_private(fresh / "results.key", encode(secrets.token_bytes(32)).encode())
        write_private(fresh / "local.token", encode(secrets.token_bytes(32)).encode())
        for name, prefix in NATS_SEEDS.items():
            write_private(fresh / f"nats-{name}.nk", nkey.seed_text(prefix, secrets.token_bytes(32)).encode())
        # Fails where another process was first; its keys are the keys then.
        fresh.rename(data / KEYS)
        sync_folder(data)
    except OSError:
        if not (data / KEYS).is_dir():
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _draw_jwk(use: str, now: int) -> dict[str, Any]:
    seed = secrets.token_bytes(32)
    return {**SigningKey.from_seed(seed, use).public.to_jwk(), "d": encode(seed), "created": now}


def _write_jwk(keys: Path, jwk: dict[str, Any]) -> None:
    write_private(keys / f"{jwk['remit_use']}-{jwk['kid']}.jwk", json.dumps(jwk, indent=1).encode())


def _signers(keys: Path, use: str) -> tuple[DatedKey, ...]:
    found = [_signer(path, use) for path in keys.iterdir() if (m := _FILE.fullmatch(path.name)) and m[1] == use]
    return tuple(sorted(found, key=lambda one: (one.created, one.key.kid)))


def _signer(path: Path, use: str) -> DatedKey:
    jwk = _object(path)
    seed, created, retired = _b64_32(path, jwk.get("d")), jwk.get("created"), jwk.get("retired")
    key = SigningKey.from_seed(seed, use)
    # The file says which key it is in four places; a copy under another name must not sign as that name, or for another use.
    said = (f"{jwk.get('remit_use', GRANT)}-{jwk.get('kid')}.jwk", jwk.get("kid"), jwk.get("x"))
    if (
        said != (path.name, key.kid, encode(key.public.raw))
        or not isinstance(created, int)
        or not isinstance(retired, int | None)
    ):
        raise ConfigError(f"{path} is damaged: kid, x and d do not belong together", "restore it from a backup")
    return DatedKey(key, created, retired)


def _public_jwk(found: DatedKey) -> dict[str, Any]:
    times = (
        {"created": found.created} if found.retired is None else {"created": found.created, "retired": found.retired}
    )
    return {**found.key.public.to_jwk(), **times}


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_private(path))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no JWK", "restore it from a backup")
    return value


def _seed(path: Path, prefix: nkey.Prefix) -> str:
    text = read_private(path).decode("ascii", "replace").strip()
    try:
        nkey.seed_bytes(prefix, text)
    except nkey.BadKey as error:
        raise ConfigError(f"{path} is damaged: {error}", "restore it from a backup") from None
    return text


def _raw32(path: Path) -> bytes:
    return _b64_32(path, read_private(path).decode("ascii", "replace").strip())


def _token(path: Path) -> str:
    text = read_private(path).decode("ascii", "replace").strip()
    _b64_32(path, text)
    return text


def _b64_32(path: Path, text: object) -> bytes:
    try:
        data = decode(text.encode()) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    if len(data) != 32:
        raise ConfigError(f"{path} is damaged: not 32 bytes of base64url", "restore it from a backup")
    return data
