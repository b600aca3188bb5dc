"""The kinds of secrets that are looked for: what each looks like, and how to tell one from what only looks like it.

A pattern begins at a word boundary and says how the secret ends, so that part of a longer word is none.
"""

from __future__ import annotations

from typing import Final

from remit_broker.adapters.content.kinds import BEHIND, Check, Kind, word
from remit_broker.adapters.content.secret_checks import (
    chosen,
    in_url,
    json_segment,
    mixed,
    numeric_id,
    password,
    random,
)

_B: Final = r"[0-9A-Za-z_-]"
"""What base64url is written with; a token of it may end with a character that ends no word."""


def _token(name: str, key: str, body: str, check: Check | None = None) -> Kind:
    """A token that is known by its own form alone."""
    return Kind(f"secret.{name}", word(body), key, check, joins=True)


def _open(name: str, key: str, body: str, check: Check | None = None) -> Kind:
    """The same, where the last character may be none of a word."""
    return Kind(f"secret.{name}", rf"\b({body}){BEHIND}", key, check, joins=True)


def _near(name: str, key: str, pattern: str, check: Check | None = None) -> Kind:
    """What is a secret by what stands beside it: the group is the secret."""
    return Kind(f"secret.{name}", pattern, key, check)


def _named(name: str, vendor: str, body: str) -> Kind:
    """A plain string that is a secret because the vendor and a word such as ``key`` stand before it."""
    between = r"[^\n]{0,20}?(?:key|token|secret|auth|password|pat)[^\n0-9A-Za-z]{1,4}(?:bearer )?"
    return _near(name, rf"(?i){vendor}", rf"(?i){vendor}{between}({body})(?:[^0-9A-Za-z_-]|$)", mixed)


KINDS: Final[tuple[Kind, ...]] = (
    _near(
        "private_key",
        r"PRIVATE KEY",
        # Without its end too (cut off, or escaped line ends); a body never runs into the next block, so this stays linear.
        r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[\sA-Za-z0-9+/=:,.\\()_]|-[A-Za-z0-9])*"
        r"(?:-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----)?",
    ),
    _near("putty_key", r"PuTTY-User-Key-File", r"(PuTTY-User-Key-File-[23]: [\sA-Za-z0-9+/=:,.\\()_-]{40,})"),
    _token("age_key", r"AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"),
    # Clouds
    _token("aws_access_key", r"A(?:KI|SI|BI|CC)A[A-Z2-7]{4}", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"),
    _near(
        "aws_secret_key",
        r"(?i)aws",
        r"(?i)aws.{0,20}?(?:secret|sk|private).{0,20}?[\s'\":=]([0-9A-Za-z/+]{40})(?:[^0-9A-Za-z/+=]|$)",
        mixed,
    ),
    _token("aws_bedrock_key", r"ABSKQmVk", r"ABSKQmVkcm9ja0FQSUtleS[0-9A-Za-z+/]{60,270}={0,2}"),
    _open("google_api_key", r"AIza", rf"AIza{_B}{{35}}"),
    _open("google_oauth_secret", r"GOCSPX-", rf"GOCSPX-{_B}{{28}}"),
    _near("google_oauth_token", r"ya29\.", rf"\b(ya29\.{_B}{{20,}})"),
    _near("azure_storage_key", r"AccountKey", r"(?i)AccountKey=([0-9A-Za-z/+]{86}==)", random(4.0)),
    _near("azure_sas_signature", r"[?&;]sig=", r"[?&;]sig=([0-9A-Za-z%/+_-]{40,}(?:=|%3[dD]){0,2})", mixed),
    _near(
        "azure_client_secret",
        r"[78]Q~",
        r"(?:[^0-9A-Za-z_~.-]|^)([0-9A-Za-z_~.-]{3}[78]Q~[0-9A-Za-z_~.-]{31,34})(?:[^0-9A-Za-z_~.-]|$)",
        mixed,
    ),
    _token("azure_devops_token", r"AZDO", r"[0-9A-Za-z]{76}AZDO[0-9A-Za-z]{4}"),
    _near("azure_function_key", r"AzFu", rf"\b({_B}{{44}}AzFu[0-9A-Za-z_-]{{4}}==)"),
    _token("azure_search_key", r"AzSe", r"[0-9A-Za-z]{42}AzSe[A-D][0-9A-Za-z]{5}"),
    _near("azure_registry_key", r"\+ACR", r"\b([0-9A-Za-z+/]{42}\+ACR[A-D][0-9A-Za-z+/]{5})"),
    _near("azure_cosmos_key", r"ACDb", r"\b([0-9A-Za-z+/]{76}ACDb[0-9A-Za-z+/]{4}==)"),
    _token("alibaba_access_key", r"LTAI[0-9A-Za-z]", r"LTAI[0-9A-Za-z]{16,20}", mixed),
    _token("tencent_secret_id", r"AKID[0-9A-Za-z]", r"AKID[0-9A-Za-z]{32}", mixed),
    _open("yandex_key", r"AQVN|t1\.", rf"AQVN{_B}{{35,38}}|t1\.{_B}{{8,}}={{0,2}}\.{_B}{{86}}={{0,2}}"),
    _open("ibm_cloud_key", r"ApiKey-[0-9a-f]", r"ApiKey-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    _token("digitalocean_token", r"do[opr]_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    _open("heroku_key", r"HRKU-", rf"HRKU-AA{_B}{{58}}|HRKU-[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}"),
    _open("scaleway_key", r"SCW[0-9A-Z]{4}", r"SCW[0-9A-Z]{17}", mixed),
    _near("flyio_token", r"f[om][12]_|FlyV1", r"\b((?:fo1_|fm1[ar]_|fm2_)[0-9A-Za-z+/_-]{43,}={0,3})"),
    _token("vercel_token", r"vc[a-z]_", r"vc[apikr]_[0-9A-Za-z]{24,60}"),
    _open("netlify_token", r"nfp_", r"nfp_[0-9A-Za-z_]{36}"),
    _open("cloudflare_origin_key", r"v1\.0-", r"v1\.0-[0-9a-f]{24}-[0-9a-f]{146}"),
    _open("tailscale_key", r"tskey-", r"tskey-[a-z]{2,12}-[0-9A-Za-z]{8,20}(?:-[0-9A-Za-z]{16,40})?"),
    # Code and its supply
    _token("github_fine_grained_token", r"github_pat_", r"github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}"),
    _token("github_token", r"gh[pousr]_", r"gh[pousr]_[0-9A-Za-z]{36,}"),
    _token("github_app_token", r"v1\.[0-9a-f]{3}", r"v1\.[0-9a-f]{40}", mixed),
    Kind(
        "secret.gitlab_token",
        rf"\b((?:gl(?:pat|dt|rt|ft|soat|imt|cbt|ptt|agent|oas|ffct|wt)|GR1348941)-?{_B}{{20,64}}"
        rf"(?:\.[0-9a-z.]{{2,20}})?){BEHIND}",
        r"gl[a-z]{2,5}-|GR1348941",
        joins=True,
    ),
    _open("bitbucket_token", r"ATBB|ATCTT3", r"ATBB[0-9A-Za-z]{32}|ATCTT3xFfG[0-9A-Za-z=_-]{100,}"),
    _open("atlassian_token", r"ATATT3", r"ATATT3xFfG[0-9A-Za-z=_-]{100,}"),
    _open("sourcegraph_token", r"sg[pa]_", r"sgp_(?:[0-9a-f]{16}_|local_)?[0-9a-f]{40}"),
    _token("npm_token", r"npm_", r"npm_[0-9A-Za-z]{36}"),
    _near("pypi_token", r"pypi-AgE", rf"\b(pypi-AgE{_B}{{50,}})"),
    _token("rubygems_token", r"rubygems_", r"rubygems_[0-9a-f]{48}"),
    _token("crates_token", r"\bcio[0-9A-Za-z]{4}", r"cio[0-9A-Za-z]{32}", mixed),
    _token("clojars_token", r"CLOJARS_", r"CLOJARS_[0-9a-z]{60}"),
    _token("nuget_key", r"\boy2", r"oy2[a-z0-9]{43}", mixed),
    _open("docker_token", r"dckr_", rf"dckr_(?:pat|oat)_{_B}{{27,40}}"),
    _token("artifactory_key", r"AKCp|cmVmdGtu", r"AKCp[0-9A-Za-z]{69}|cmVmdGtu[0-9A-Za-z]{56}"),
    _open("buildkite_token", r"bkua_", r"bkua_[0-9a-f]{40}"),
    _open("circleci_token", r"CCIP[AR]T_", r"CCIP[AR]T_[0-9A-Za-z]{22}_[0-9a-f]{40}"),
    _open("terraform_token", r"atlasv1", r"[0-9A-Za-z]{14}\.atlasv1\.[0-9A-Za-z=_-]{60,70}"),
    _open("pulumi_token", r"pul-", r"pul-[0-9a-f]{40}"),
    _open("vault_token", r"hv[sbr]\.", rf"hv[sbr]\.{_B}{{24,}}"),
    _open("doppler_token", r"dp\.", r"dp\.(?:pt|ct|st|sa|scim|audit)(?:\.[a-z0-9_-]{2,35})?\.[0-9A-Za-z]{40,44}"),
    _open("infracost_key", r"ico-", r"ico-[0-9A-Za-z]{32}", mixed),
    _open("postman_key", r"PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    _open("prefect_key", r"pn[ub]_", r"pn[ub]_[0-9A-Za-z]{36}"),
    # Talk and mail
    _open("slack_token", r"xox[abeoprs]", r"xox[abeoprs](?:\.xox[bp])?-(?:[0-9A-Za-z]+-){1,5}[0-9A-Za-z-]{10,}"),
    _token("slack_app_token", r"xapp-", r"xapp-[0-9]-[A-Z0-9]+-[0-9]+-[0-9a-f]{30,}"),
    _near(
        "slack_webhook",
        r"hooks\.slack\.com",
        r"(hooks\.slack\.com/(?:services|workflows|triggers)/[0-9A-Za-z/]{30,90})",
    ),
    _near(
        "teams_webhook",
        r"webhook\.office\.com",
        r"([0-9a-z]+\.webhook\.office\.com/webhookb2/[0-9a-f@-]{30,90}/IncomingWebhook/[0-9a-f]{32}/[0-9a-f-]{36})",
    ),
    _open(
        "discord_token",
        r"[0-9A-Za-z_-]{4}\.[0-9A-Za-z_-]{6}\.[0-9A-Za-z_-]{4}",
        rf"[MNO]{_B}{{23,27}}\.{_B}{{6}}\.{_B}{{27,38}}",
        numeric_id,
    ),
    _near("discord_webhook", r"api/webhooks", rf"(discord(?:app)?\.com/api/webhooks/[0-9]{{17,20}}/{_B}{{60,80}})"),
    _open("telegram_bot_token", r":AA", rf"[0-9]{{8,10}}:AA{_B}{{33}}"),
    _token("twilio_key", r"SK[0-9a-f]{4}", r"SK[0-9a-f]{32}", mixed),
    _near(
        "twilio_auth_token",
        r"(?i)twilio",
        r"(?i)twilio.{0,30}?(?:token|secret|auth).{0,10}?\b([0-9a-f]{32})\b",
        mixed,
    ),
    _open("sendgrid_key", r"SG\.", rf"SG\.{_B}{{22}}\.{_B}{{43}}"),
    _token("sendinblue_key", r"xkeysib-", r"xkeysib-[0-9a-f]{64}-[0-9A-Za-z]{16}"),
    _near(
        "mailgun_key",
        r"[0-9a-f]{4}-[0-9a-f]{8}-[0-9a-f]{4}|key-[0-9a-f]{4}",
        r"\b(key-[0-9a-f]{32}|[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8})\b",
        mixed,
    ),
    _near("mailchimp_key", r"[0-9a-f]-us[0-9]", word(r"[0-9a-f]{32}-us[0-9]{1,2}"), mixed),
    # Money and shops
    _token("stripe_key", r"[sr]k_[ltp]", r"(?:sk|rk)_(?:live|test|prod)_[0-9A-Za-z]{16,}"),
    _token("stripe_webhook_secret", r"whsec_", r"whsec_[0-9A-Za-z]{32,64}"),
    _open("square_token", r"sq0[aci]|EAAA", rf"sq0(?:atp|csp|idp)-{_B}{{22,43}}|EAAA{_B}{{60}}"),
    _token("shopify_token", r"shp[acps]", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _token("razorpay_key", r"rzp_", r"rzp_(?:live|test)_[0-9A-Za-z]{14}"),
    _token("flutterwave_key", r"FLW(?:SEC|PUB)K_", r"FLW(?:SEC|PUB)K_(?:TEST|LIVE)?-?[0-9a-hX]{12,32}(?:-X)?"),
    _open("braintree_token", r"access_token\$", r"access_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{32}"),
    _token("easypost_key", r"EZ[AT]K", r"EZ[AT]K[0-9A-Za-z]{54}"),
    _token("shippo_token", r"shippo_", r"shippo_(?:live|test)_[0-9a-fA-F]{40}"),
    _open("duffel_token", r"duffel_", rf"duffel_(?:live|test)_{_B}{{43}}"),
    _token(
        "plaid_token",
        r"access-(?:sandbox|prod|dev)",
        r"access-(?:sandbox|development|production)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    ),
    # Models
    _open("anthropic_key", r"sk-ant-", rf"sk-ant-(?:api|admin|sid|oat|ort)[0-9]{{2}}-{_B}{{32,}}"),
    _token("openrouter_key", r"sk-or-v1", r"sk-or-v1-[0-9a-f]{64}"),
    _open(
        "openai_key",
        r"sk-",
        rf"sk-(?:(?:proj|svcacct|admin|None)-{_B}{{40,}}|[0-9A-Za-z]{{20}}T3BlbkFJ[0-9A-Za-z]{{20}}"
        rf"|[0-9A-Za-z]{{48}})",
        mixed,
    ),
    _token("huggingface_token", r"hf_|api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{34}", random(3.0)),
    _token("groq_key", r"gsk_", r"gsk_[0-9A-Za-z]{52}"),
    _token("xai_key", r"xai-", r"xai-[0-9A-Za-z]{80}"),
    _token("perplexity_key", r"pplx-", r"pplx-[0-9A-Za-z]{48,56}", mixed),
    _token("replicate_token", r"r8_", r"r8_[0-9A-Za-z]{37}"),
    _token("langsmith_key", r"lsv2_", r"lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}"),
    _open("pinecone_key", r"pcsk_", r"pcsk_[0-9A-Za-z]{5,6}_[0-9A-Za-z]{60,70}"),
    _token("elevenlabs_key", r"sk_[0-9a-f]", r"sk_[0-9a-f]{48}", mixed),
    _token("voyage_key", r"\bpa-", rf"pa-{_B}{{43}}", mixed),
    # Data and what watches it
    _token("databricks_token", r"dapi[0-9a-f]{4}", r"dapi[0-9a-f]{32}(?:-[0-9])?"),
    _open("planetscale_token", r"pscale_", r"pscale_(?:tkn|pw|oauth)_[0-9A-Za-z=._-]{32,64}"),
    _open("supabase_key", r"sbp_|sb_secret_", rf"sbp_[0-9a-f]{{40}}|sb_secret_{_B}{{31,}}"),
    _open("airtable_token", r"pat[0-9A-Za-z]{5}", r"pat[0-9A-Za-z]{14}\.[0-9a-f]{64}"),
    _token("new_relic_key", r"NRAK-|NRII-|NRJS-", r"NRAK-[0-9A-Z]{27}|NRII-[0-9A-Za-z_-]{32}|NRJS-[0-9a-f]{19}"),
    _open(
        "grafana_token",
        r"gl(?:c|sa)_|eyJrIjoi",
        r"glsa_[0-9A-Za-z]{32}_[0-9A-Fa-f]{8}|glc_[0-9A-Za-z+/]{32,400}={0,3}|eyJrIjoi[0-9A-Za-z]{60,400}={0,2}",
    ),
    _open("sentry_token", r"sntr[yu]", r"sntrys_eyJ[0-9A-Za-z+/=_-]{60,400}|sntryu_[0-9a-f]{64}"),
    _token("dynatrace_token", r"dt0[a-z]", r"dt0[a-z][0-9]{2}\.[0-9A-Z]{24}\.[0-9A-Z]{64}"),
    _token("posthog_key", r"ph[cx]_", r"ph[cx]_[0-9A-Za-z]{43}"),
    _token("honeycomb_key", r"hc[abx][il]k_", r"hc[abx][il]k_[0-9a-z]{58}"),
    # Everything else with a form of its own
    _token("linear_key", r"lin_(?:api|oauth)_", r"lin_(?:api|oauth)_[0-9A-Za-z]{40,64}"),
    _token("notion_token", r"ntn_|secret_", r"(?:ntn_[0-9A-Za-z]{40,50}|secret_[0-9A-Za-z]{43})", mixed),
    _open("figma_token", r"fig[doh]", rf"fig(?:d|o[ru]?|h)_{_B}{{40,}}"),
    _open("typeform_token", r"tfp_", r"tfp_[0-9A-Za-z_.=-]{59}"),
    _token("readme_key", r"rdme_", r"rdme_[0-9a-z]{70}"),
    _token("frameio_token", r"fio-u-", r"fio-u-[0-9A-Za-z_=-]{63}[0-9A-Za-z]"),
    _open("adobe_secret", r"p8e-", rf"p8e-{_B}{{32}}", mixed),
    _open("hubspot_key", r"pat-[en]", r"pat-(?:na|eu)[0-9]-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    _open("facebook_token", r"EAA[A-Z]", r"EAA[MC][0-9A-Za-z]{100,300}", mixed),
    _open("mapbox_token", r"sk\.eyJ", rf"sk\.eyJ{_B}{{40,200}}\.{_B}{{20,24}}"),
    _near("dropbox_token", r"sl\.", rf"\b(sl\.(?:u\.)?{_B}{{120,1000}})"),
    _open("okta_token", r"SSWS|okta", rf"(?:SSWS )00{_B}{{40}}"),
    _open(
        "onepassword_token",
        r"ops_eyJ|A3-",
        rf"ops_eyJ{_B}{{250,}}={{0,3}}|A3-[0-9A-Z]{{6}}-(?:[0-9A-Z]{{11}}|[0-9A-Z]{{6}}-[0-9A-Z]{{5}})(?:-[0-9A-Z]{{5}}){{3}}",
    ),
    _token("nats_seed", r"S[UAOCNX][A-Z2-7]{5}", r"S[UAOCNX][A-Z2-7]{56}", random(3.5)),
    _open("jwt", r"eyJ", rf"eyJ{_B}{{10,}}\.{_B}{{10,}}\.{_B}{{16,}}", json_segment),
    # What is a secret by the words before it
    _named("datadog_key", "datadog", r"[0-9a-f]{32}|[0-9a-f]{40}"),
    _named("cloudflare_token", "cloudflare", r"[0-9A-Za-z_-]{40}|[0-9a-f]{37}"),
    _named("algolia_key", "algolia", r"[0-9a-f]{32}"),
    _named("fastly_token", "fastly", r"[0-9A-Za-z_-]{32}"),
    _named("asana_secret", "asana", r"[0-9]/[0-9]{16}:[0-9a-f]{32}|[0-9a-f]{32}"),
    _named("snyk_token", "snyk", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    _named("travis_token", "travis", r"[0-9A-Za-z]{22}"),
    _named("pagerduty_key", "pager_?duty", r"[0-9A-Za-z_+-]{20}"),
    _near(
        "url_password",
        r"://[0-9A-Za-z_.~%+-]*:[^\s/@]+@",
        r"\b[a-zA-Z][0-9A-Za-z+.-]{1,20}://[0-9A-Za-z_.~%+-]{0,64}:([!-.0-9:;=?A-Z_a-z~%^+-]{6,})@[0-9A-Za-z\[]",
        in_url,
    ),
    _near(
        "basic_auth",
        r"(?i)basic [0-9A-Za-z]",
        r"(?i)authorization['\"]?\s{0,2}[:=,]\s{0,2}['\"]?basic ([0-9A-Za-z+/]{12,}={0,2})",
        chosen,
    ),
    _near(
        "bearer_token",
        r"(?i)(?:bearer|token) [0-9A-Za-z._~+/-]{8}",
        r"(?i)authorization['\"]?\s{0,2}[:=,]\s{0,2}['\"]?(?:bearer|token) ([0-9A-Za-z._~+/-]{20,}={0,2})",
        password,
    ),
    _near(
        "password",
        r"(?i)(?:pass(?:word|wd|phrase)|pwd|secret|key|token)[a-z0-9_]*['\"]?\s*(?::=|=>|=|:)\s*['\"]?[^\s'\"$<{%\[(]{8}",
        r"(?i)(?:pass(?:word|wd|phrase)|pwd|secret|api[_-]?key|apikey|access[_-]?key|auth[_-]?token|access[_-]?token"
        r"|client[_-]?secret|private[_-]?key)[a-z0-9_]{0,12}['\"]?\s{0,3}(?::=|=>|=|:)\s{0,3}['\"]?"
        r"([!#-&(-+./-9:;<=?-Z\[\]^_a-z{|}~-]{8,})",
        password,
    ),
)
"""In the order in which they win."""
