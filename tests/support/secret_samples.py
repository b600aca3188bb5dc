"""One sample of every kind of secret, put together here so that no file holds anything that looks like one."""

from __future__ import annotations

import base64
import json
import random
import string

_random = random.Random(20261)
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
URL = ALNUM + "_-"


def _of(length: int, alphabet: str = ALNUM) -> str:
    return "".join(_random.choice(alphabet) for _ in range(length - 1)) + _random.choice(alphabet.replace("-", "x"))


def _segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _pem(kind: str) -> str:
    body = "\n".join(_of(64) for _ in range(4))
    return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"


SAMPLES: dict[str, tuple[str, str]] = {
    kind: (f"{before}{secret}{after}", secret)
    for kind, before, secret, after in (
        ("private_key", "key:\n", _pem("RSA PRIVATE KEY"), "\n"),
        ("aws_access_key", "id ", "AKIA" + _of(16, BASE32), " end"),
        ("aws_secret_key", "aws_secret_access_key = ", _of(39) + "7", "\n"),
        ("github_fine_grained_token", "use ", "github_pat_" + _of(22) + "_" + _of(59), " now"),
        ("github_token", "use ", "ghp_" + _of(36), "."),
        ("github_app_token", "use ", "v1." + _of(40, HEX), " now"),
        ("gitlab_token", "(", "glpat-" + _of(20, URL), ")"),
        ("slack_token", "'", "xoxb-" + _of(12, string.digits) + "-" + _of(24), "'"),
        ("slack_app_token", "'", "xapp-1-A" + _of(10, BASE32) + "-" + _of(13, string.digits) + "-" + _of(64, HEX), "'"),
        ("slack_webhook", "https://", "hooks.slack.com/services/T" + _of(10) + "/B" + _of(10) + "/" + _of(24), " x"),
        ("stripe_key", "k=", "sk_" + "live_" + _of(24), "&"),
        ("stripe_webhook_secret", "k=", "whsec_" + _of(32), "&"),
        ("google_api_key", "?key=", "AIza" + _of(35, URL), "&x"),
        ("google_oauth_secret", '"', "GOCSPX-" + _of(28, URL), '"'),
        ("google_oauth_token", "Bearer ", "ya29." + _of(60, URL), " x"),
        ("anthropic_key", "x-api-key ", "sk-ant-api03-" + _of(93, URL) + "AA", "\n"),
        ("openrouter_key", "key ", "sk-or-v1-" + _of(64, HEX), "\n"),
        ("openai_key", "key ", "sk-proj-" + _of(74, URL), "\n"),
        ("npm_token", "//registry/:_auth ", "npm_" + _of(36), "\n"),
        ("pypi_token", "pw ", "pypi-AgE" + _of(90, URL), "\n"),
        ("rubygems_token", "pw ", "rubygems_" + _of(48, HEX), "\n"),
        ("docker_token", "pw ", "dckr_pat_" + _of(27, URL), "\n"),
        ("twilio_key", "sid ", "SK" + _of(31, HEX) + "7", "\n"),
        ("twilio_auth_token", "TWILIO_AUTH_TOKEN is ", _of(31, HEX) + "7", "\n"),
        ("sendgrid_key", "mail ", "SG." + _of(22, URL) + "." + _of(43, URL), "\n"),
        ("mailgun_key", "mail ", "key-" + _of(31, HEX) + "7", "\n"),
        ("mailchimp_key", "mail ", _of(31, HEX) + "a-us12", "\n"),
        ("azure_storage_key", "AccountName=x;AccountKey=", _of(86) + "==", ";EndpointSuffix=y"),
        ("azure_sas_signature", "https://x/y?sv=2024&sig=", _of(43) + "%3D", "&se=1"),
        ("azure_client_secret", "id ", "aB3" + "8Q~" + _of(34), " x"),
        ("digitalocean_token", "do ", "dop_v1_" + _of(64, HEX), " x"),
        ("huggingface_token", "hf ", "hf_" + _of(34, string.ascii_letters), " x"),
        ("telegram_bot_token", "bot ", _of(9, "123456789") + ":AA" + _of(33, URL), " x"),
        ("discord_token", "bot ", _segment(123456789012345678) + "." + _of(6, URL) + "." + _of(27, URL), " x"),
        (
            "discord_webhook",
            "https://",
            "discord.com/api/webhooks/" + _of(18, string.digits) + "/" + _of(68, URL),
            " x",
        ),
        ("square_token", "sq ", "sq0" + "atp-" + _of(22, URL), " x"),
        ("shopify_token", "shop ", "shp" + "at_" + _of(32, HEX), " x"),
        ("databricks_token", "dbx ", "dapi" + _of(32, HEX), " x"),
        ("new_relic_key", "nr ", "NRAK-" + _of(27, string.ascii_uppercase + string.digits), " x"),
        ("linear_key", "lin ", "lin_api_" + _of(40), " x"),
        ("notion_token", "ntn ", "ntn_" + _of(45) + "1a", " x"),
        ("vault_token", "vault ", "hvs." + _of(90, URL), " x"),
        ("nats_seed", "seed ", "SU" + "A" + _of(55, BASE32), " x"),
        ("age_key", "age ", "AGE-SECRET-KEY-1" + _of(58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"), " x"),
        ("jwt", "Bearer ", _segment({"alg": "HS256"}) + "." + _segment({"sub": "ann"}) + "." + _of(43, URL), " x"),
        ("url_password", "postgres://app:", "tr0ub4dor", "@db.internal/app"),
        ("password", 'password = "', "Tr0ub4dor&3", '"'),
    )
}
"""By kind: a text, and the secret within it."""
