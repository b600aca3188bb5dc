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


def _uuid() -> str:
    return "-".join(_of(size, HEX) for size in (8, 4, 4, 4, 11)) + "7"


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
        ("putty_key", "file:\n", "PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\n" + _of(64), '"'),
        ("aws_bedrock_key", "key ", "ABSKQmVkcm9ja0FQSUtleS" + _of(110), " x"),
        ("azure_devops_token", "pat ", _of(76) + "AZDO" + _of(4), " x"),
        ("azure_function_key", "code=", _of(44, URL) + "AzFu" + _of(4, URL) + "==", " x"),
        ("azure_search_key", "key ", _of(42) + "AzSeA" + _of(5), " x"),
        ("azure_registry_key", "pw ", _of(42) + "+ACRA" + _of(5), " x"),
        ("azure_cosmos_key", "key ", _of(76) + "ACDb" + _of(4) + "==", " x"),
        ("alibaba_access_key", "id ", "LTAI" + _of(19) + "7", " x"),
        ("tencent_secret_id", "id ", "AKID" + _of(31) + "7", " x"),
        ("yandex_key", "id ", "AQVN" + _of(35, URL), " x"),
        ("ibm_cloud_key", "id ", "ApiKey-" + _uuid(), " x"),
        ("heroku_key", "id ", "HRKU-AA" + _of(58, URL), " x"),
        ("scaleway_key", "id ", "SCW" + _of(13, BASE32) + "WXYZ", " x"),
        ("flyio_token", "FlyV1 ", "fm2_" + _of(120), " x"),
        ("vercel_token", "id ", "vcp_" + _of(40), " x"),
        ("netlify_token", "id ", "nfp_" + _of(36), " x"),
        ("cloudflare_origin_key", "id ", "v1.0-" + _of(24, HEX) + "-" + _of(146, HEX), " x"),
        ("tailscale_key", "id ", "tskey-" + "auth-" + _of(12) + "-" + _of(32), " x"),
        ("bitbucket_token", "id ", "ATBB" + _of(32), " x"),
        ("atlassian_token", "id ", "ATATT3xFfG" + _of(180, URL), " x"),
        ("sourcegraph_token", "id ", "sgp_" + _of(16, HEX) + "_" + _of(40, HEX), " x"),
        ("crates_token", "id ", "cio" + _of(31) + "7", " x"),
        ("clojars_token", "id ", "CLOJARS_" + _of(60, string.ascii_lowercase), " x"),
        ("nuget_key", "id ", "oy2" + _of(42, HEX) + "7", " X"),
        ("artifactory_key", "id ", "AKCp" + _of(69), " x"),
        ("buildkite_token", "id ", "bkua_" + _of(40, HEX), " x"),
        ("circleci_token", "id ", "CCIPAT_" + _of(22) + "_" + _of(40, HEX), " x"),
        ("terraform_token", "id ", _of(14) + ".atlasv1." + _of(65, URL), " x"),
        ("pulumi_token", "id ", "pul-" + _of(40, HEX), " x"),
        ("doppler_token", "id ", "dp.pt." + _of(43), " x"),
        ("infracost_key", "id ", "ico-" + _of(31) + "7", " x"),
        ("postman_key", "id ", "PMAK-" + _of(24, HEX) + "-" + _of(34, HEX), " x"),
        ("prefect_key", "id ", "pnu_" + _of(36), " x"),
        (
            "teams_webhook",
            "https://",
            f"acme.webhook.office.com/webhookb2/{_uuid()}@{_uuid()}/IncomingWebhook/{_of(32, HEX)}/{_uuid()}",
            " x",
        ),
        ("sendinblue_key", "id ", "xkeysib-" + _of(64, HEX) + "-" + _of(16), " x"),
        ("razorpay_key", "id ", "rzp_" + "live_" + _of(14), " x"),
        ("flutterwave_key", "id ", "FLWSECK_TEST-" + _of(32, "0123456789abcd") + "-X", " end"),
        ("braintree_token", "id ", "access_token$" + "production$" + _of(16, HEX) + "$" + _of(32, HEX), " x"),
        ("easypost_key", "id ", "EZAK" + _of(54), " x"),
        ("shippo_token", "id ", "shippo_" + "live_" + _of(40, HEX), " x"),
        ("duffel_token", "id ", "duffel_" + "live_" + _of(43, URL), " x"),
        ("plaid_token", "id ", "access-" + "production-" + _uuid(), " x"),
        ("groq_key", "id ", "gsk_" + _of(52), " x"),
        ("xai_key", "id ", "xai-" + _of(80), " x"),
        ("perplexity_key", "id ", "pplx-" + _of(47) + "7", " x"),
        ("replicate_token", "id ", "r8_" + _of(37), " x"),
        ("langsmith_key", "id ", "lsv2_" + "pt_" + _of(32, HEX) + "_" + _of(10, HEX), " x"),
        ("pinecone_key", "id ", "pcsk_" + _of(6) + "_" + _of(63), " x"),
        ("elevenlabs_key", "id ", "sk_" + _of(47, HEX) + "7", " X"),
        ("voyage_key", "id ", "pa-" + _of(42, URL) + "7", " x"),
        ("planetscale_token", "id ", "pscale_" + "tkn_" + _of(43, URL), " x"),
        ("supabase_key", "id ", "sbp_" + _of(40, HEX), " x"),
        ("airtable_token", "id ", "pat" + _of(14) + "." + _of(64, HEX), " x"),
        ("grafana_token", "id ", "glsa_" + _of(32) + "_" + _of(8, HEX), " x"),
        ("sentry_token", "id ", "sntryu_" + _of(64, HEX), " x"),
        ("dynatrace_token", "id ", "dt0c01." + _of(24, BASE32) + "." + _of(64, BASE32), " x"),
        ("posthog_key", "id ", "phx_" + _of(43), " x"),
        ("honeycomb_key", "id ", "hcaik_" + _of(58, string.ascii_lowercase), " x"),
        ("figma_token", "id ", "figd_" + _of(40, URL), " x"),
        ("typeform_token", "id ", "tfp_" + _of(59), " x"),
        ("readme_key", "id ", "rdme_" + _of(70, string.ascii_lowercase), " x"),
        ("frameio_token", "id ", "fio-u-" + _of(64, URL), " x"),
        ("adobe_secret", "id ", "p8e-" + _of(31, URL) + "7", " x"),
        ("hubspot_key", "id ", "pat-" + "na1-" + _uuid(), " x"),
        ("facebook_token", "id ", "EAAM" + _of(120) + "7", " x"),
        ("mapbox_token", "id ", "sk.eyJ" + _of(80, URL) + "." + _of(22, URL), " x"),
        ("dropbox_token", "id ", "sl.u." + _of(140, URL), " x"),
        ("okta_token", "Authorization ", "SSWS 00" + _of(40, URL), " x"),
        ("onepassword_token", "id ", "ops_eyJ" + _of(260), " x"),
        ("datadog_key", "DATADOG_API_KEY=", _of(31, HEX) + "7", " x"),
        ("cloudflare_token", "cloudflare_api_token: ", _of(39) + "7", " x"),
        ("algolia_key", "ALGOLIA_ADMIN_KEY: ", _of(31, HEX) + "7", " X"),
        ("fastly_token", "fastly token ", _of(31) + "7", " x"),
        ("asana_secret", "asana secret ", "1/" + _of(16, string.digits) + ":" + _of(32, HEX), " x"),
        ("snyk_token", "SNYK_TOKEN ", _uuid(), " x"),
        ("travis_token", "travis token ", _of(21) + "7", " x"),
        ("pagerduty_key", "pagerduty key ", _of(19) + "7", " x"),
        ("basic_auth", "Authorization: Basic ", base64.b64encode(b"app:tr0ub4dor").decode(), " x"),
        ("bearer_token", "Authorization: Bearer ", _of(29) + "a7", " x"),
        ("url_password", "postgres://app:", "tr0ub4dor", "@db.internal/app"),
        ("password", 'password = "', "Tr0ub4dor&3", '"'),
    )
}
"""By kind: a text, and the secret within it."""
