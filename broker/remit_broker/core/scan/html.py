"""A report as one HTML page, readable without any other file: no script, nothing that is loaded, everything escaped."""

from __future__ import annotations

from html import escape
from typing import Final

from remit_broker.core.scan.finding import SEVERITIES, Finding, Report

_STYLE: Final = """
html{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
code{font:13px ui-monospace,monospace;overflow-wrap:anywhere;background:#f3f4f6;padding:.1em .3em;border-radius:3px}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.45rem .6rem;border-top:1px solid #e3e6ea}
.s{font-weight:600;white-space:nowrap}.critical{color:#8f1020}.high{color:#b3341a}.medium{color:#8a5a00}.low{color:#35608a}.info{color:#667}
p.ask{margin:.2rem 0 0;color:#445}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dd{margin:0}
dl.counts{display:flex;gap:0 .4rem}dl.counts dd{margin-right:1.2rem}
@media (max-width:45rem){thead{display:none}tr{display:block;border-top:1px solid #e3e6ea;padding:.5rem 0}
td{display:block;border:0;padding:.1rem 0}dl{grid-template-columns:1fr}dt{color:#667;font-size:.85rem}dd{margin-bottom:.3rem}}
@media (prefers-color-scheme:dark){body{background:#14181f;color:#d8dde6}code{background:#232a35}
td,th,tr{border-color:#2c3440!important}
dt{color:#9aa4b2}
p.ask{color:#9aa4b2}.critical{color:#ff8a92}.high{color:#ff9d7a}.medium{color:#e6b85c}.low{color:#8fbce6}.info{color:#9aa4b2}}
"""


def page(report: Report) -> str:
    """The whole page.

    INVARIANT: nothing of a server is markup in it (test_nothing_of_a_server_is_markup_in_the_report): its texts are escaped, and
    the policy of the page forbids scripts and everything that would be fetched.
    """
    counts = "".join(
        f'<dt class="s {level}">{level}</dt><dd>{number}</dd>' for level, number in report.counts().items() if number
    )
    server = " ".join(report.server.get(key, "") for key in ("name", "version")).strip() or "unknown"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Scan of an MCP server</title><style>{_STYLE}</style></head><body>
<h1>Scan of an MCP server</h1>
<dl><dt>target</dt><dd>{_code(report.target)}</dd><dt>it says it is</dt><dd>{_code(server)}</dd>
<dt>protocol</dt><dd>{_code(report.server.get("protocol", "-"))}</dd><dt>at</dt><dd>{escape(report.at)}, {report.seconds:g} s</dd>
<dt>ran</dt><dd>{escape(report.contained or "-")}</dd>
<dt>tools</dt><dd>{len(report.tools)}</dd><dt>resources, prompts</dt><dd>{report.resources}, {report.prompts}</dd>
<dt>digest of its tools</dt><dd>{_code(report.pin or "-")}</dd></dl>
<h2>Findings</h2><dl class="counts">{counts}</dl>
<table><thead><tr><th>severity</th><th>what</th><th>where</th></tr></thead><tbody>
{"".join(map(_row, report.findings)) or '<tr><td colspan="3">nothing was found</td></tr>'}</tbody></table>
{f"<p>and {report.left_out} more</p>" if report.left_out else ""}
<h2>Tools</h2><p>{" ".join(map(_code, report.tools)) or "none"}</p>
<p class="ask">A scan looks at what a server says of itself. It calls no tool: a server that says one thing and does another is not
found out by it. No finding is no proof.</p></body></html>
"""


def _row(one: Finding) -> str:
    level = one.severity if one.severity in SEVERITIES else "info"
    said = f"<br>{_code(one.evidence)}" if one.evidence else ""
    ask = f'<p class="ask">{escape(one.ask)}</p>' if one.ask else ""
    return (
        f'<tr><td class="s {level}">{level}</td><td>{escape(one.message)}{said}{ask}'
        f'<p class="ask">{_code(one.rule)}</p></td><td>{_code(one.where)}</td></tr>\n'
    )


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
