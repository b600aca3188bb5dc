"""The kinds of signs that text speaks to a model rather than to a person. Signs: no proof, and no proof of the contrary.

Words stand apart by ``~`` in what follows, which matches what may stand between words (also the end of a string and the
beginning of the next). Accents are left out: text is also read with its accents removed.
"""

from __future__ import annotations

from typing import Final

from remit_broker.adapters.content.kinds import Kind, utf8

_GAP: Final = r"[\s\x0c\"'*,.:;!>()_-]{1,6}"


def _say(pattern: str) -> str:
    return utf8(pattern.replace("~", _GAP))


def _kind(name: str, key: str | None, pattern: str) -> Kind:
    whole = rf"(?i)(?:{_say(pattern)})"
    return Kind(f"injection.{name}", whole, whole if key is None else rf"(?i)(?:{_say(key)})")


_ALL: Final = (
    r"(?:(?:all|any|every|everything|each|the|your|my|these|those|this|that|of|previous|previously"
    r"|prior|earlier|preceding|above|foregoing|former|past|initial|original|existing|current"
    r"|system|safety|other|given|stated)~){0,5}"
)
_RULES: Final = (
    r"(?:instructions?|prompts?|rules?|guidelines?|directions?|directives?|commands?|orders?"
    r"|constraints?|restrictions?|policies|policy|programming|training|safeguards?|guardrails?"
    r"|context|assignments?|tasks?|messages?|text|statements?|conversation)"
)
_BEFORE: Final = r"(?:previous|previously|prior|earlier|preceding|above|foregoing|before|so far|given|told|said)"

KINDS: Final[tuple[Kind, ...]] = (
    # What was said before no longer holds
    _kind(
        "override",
        None,
        r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|overrid(?:e|ing)|overrule|bypass(?:ing)?"
        r"|neglect|skip|set~aside"
        r"|pay~no~attention~to|abandon|discard|do~not~follow|don.t~follow|stop~following|circumvent|drop)~"
        rf"(?:(?:completely|all~about|about|from|to|any|and~bypass|what~you~(?:were|have~been)~told)~)?"
        rf"(?:{_ALL}{_RULES}\b|(?:everything|all|anything|what)~(?:(?:that|which|you|i|we|were|was"
        rf"|have|has|been|of|the)~){{0,5}}{_BEFORE}\b"
        r"|(?:everything|all)~(?:(?:that|which|of)~)?(?:you~(?:know|were|have|learned)|i~(?:said"
        r"|told)|the~above)|the~above\b)",
    ),
    _kind(
        "override",
        r"instru|anweisung|befehl|vorherig|consign|ordine|precedent|anterior|istruzion|regl|regel|polecen|talimat",
        # German, Dutch
        r"\b(?:ignorier(?:e|en|t)|vergiss|vergessen|missacht(?:e|en)|verwirf|negeer|vergeet)~(?:(?:sie"
        r"|bitte|alle|alles|die|deine|ihre|jegliche"
        r"|vorherigen?|bisherigen?|vorangegangenen|obigen|fruheren|vorige|eerdere|de|het|je|bovenstaande)~){0,5}(?:anweisung(?:en)?"
        r"|befehle?|instruktionen|regeln?|vorgaben"
        r"|instructies?|opdrachten|regels|was~(?:ich|du|sie|vorher|davor))"
        # French
        r"|\b(?:ignore[zr]?|oublie[zr]?|ne~tene?z?~pas~compte)~(?:(?:de|des|toutes?|tous|les|tes"
        r"|vos|mes|ces)~){0,4}(?:instructions?|consignes?|regles|directives|ordres)"
        # Spanish, Portuguese, Italian
        r"|\b(?:ignora[rd]?|ignore|olvida[rd]?|olvide|omite|descarta|esquec[ea]|desconsidere|dimentica(?:re)?"
        r"|trascura)~(?:(?:de|todas?|todos|tutt[ei]|las?|los|le|gli|as|os|tus|sus|suas|tuas|tue|mis"
        r"|minhas"
        r"|anteriores|precedenti|previas)~){0,5}(?:instruc+iones|instrucciones|instrucoes|instru.{1,4}es"
        r"|istruzioni|ordenes|reglas|regras|regole|indicaciones|ordini|comandos)"
        # Polish, Turkish
        r"|\b(?:zignoruj|ignoruj|zapomnij)~(?:(?:o|wszystkie|wszystkich|poprzednie|poprzednich|powyzsze)~){0,4}(?:instrukcj[ei]"
        r"|polecenia|polecen|zasady)"
        r"|(?:onceki|yukaridaki)~(?:(?:tum|butun)~)?(?:talimatlari|komutlari|kurallari)~(?:(?:tamamen)~)?(?:unut"
        r"|yoksay|goz~ardi|dikkate~alma)",
    ),
    _kind(
        "override",
        r"инструкци|указани|правил|команд|指令|指示|提示|说明|規則|规则|命令|ルール|プロンプト|지시|명령|تعليمات|निर्देश",
        r"(?:(?:\xd0\x98|и|ои)гнорируй(?:те)?|(?:\xd0\x97|з)абудь(?:те)?|\xd0\xb5 обращай(?:те)? внимания на)[^\n]{0,120}(?:инструкци"
        r"|указани|правил|команд)"
        r"|(?:忽略|忽视|无视|忘记|忘掉|不要理会|無視|忽視|忘記)[^\n]{0,120}(?:指令|指示|提示|说明|規則|规则|命令|內容|内容)"
        r"|(?:指示|命令|指令|ルール|プロンプト|内容)[^\n]{0,72}(?:無視|忘れ|無効)"
        r"|(?:지시|명령|규칙|지침)[^\n]{0,72}(?:무시|잊어)"
        r"|(?:تجاهل|انس)[^\n]{0,120}(?:التعليمات|تعليمات|الأوامر)"
        r"|(?:निर्देश)[^\n]{0,120}(?:अनदेखा|नज़रअंदाज|भूल)",
    ),
    _kind(
        "override",
        None,
        r"\b(?:your|the|here~(?:are|is)|following|these|my)~(?:(?:are|is|the|your|only)~){0,3}new~(?:system~)?(?:instructions?"
        r"|task|orders?|directives?|rules|objective)\b"
        r"|(?:^|[\n#*\[=-])\s{0,3}new~(?:system~)?(?:instructions?|task|orders?|directives?|objective)\s?[:\]\n-]"
        r"|\b(?:previous|prior|earlier|above)~(?:instructions?|tasks?|orders?)~(?:(?:are|is|were"
        r"|have|has|been|now|no~longer)~){1,4}(?:void|cancel+ed|revoked|obsolete|outdated|replaced"
        r"|changed|superseded|invalid|valid|apply|relevant|completed?)",
    ),
    # Text that plays another speaker
    _kind(
        "role_marker",
        r"<\||</?(?:sys|assist|function|tool_|human>|admin>|antml|start|end)|\[/?inst|<<|\[/?(?:system"
        r"|assistant)|#{2,6} ?(?:system|instruction|human|assistant|response)|(?:^|\n)[ \t]*(?:system"
        r"|assistant|human)[a-z ]*\s?:",
        r"<\|(?:im_start|im_end|im_sep|system|user|assistant|endoftext|end|begin_of_text|start_header_id"
        r"|end_header_id|eot_id|end_of_turn"
        r"|start_of_turn|tool|endofprompt|fim_[a-z]{1,10})\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
        r"|\[/?(?:system|assistant|system[_ ]?(?:prompt|message))\]"
        r"|</?(?:system|system[_ -]?prompt|system[_ -]?message|system[_ -]?instructions?|assistant"
        r"|function_calls|tool_call|tool_result"
        r"|tool_response|human|admin|antml[a-z:_]{0,20})>"
        r"|(?:^|\n)\s{0,4}#{2,6}\s?(?:system|instructions?|human|assistant|response)\s?:(?:\s|$)"
        r"|(?:^|\n)[ \t]{0,4}(?:human|assistant|system|system (?:prompt|message|note|override|update|alert))\s?:",
    ),
    # Another self for the model
    _kind(
        "persona",
        None,
        r"\b(?:you(?:~are|.re)~now~(?:dan|stan|aim|jailbroken|unrestricted|free~(?:from|of)|acting"
        r"|playing|pretending|no~longer~(?:bound|an?)|going~to~(?:act|play|pretend|ignore)|in~(?:[a-z]+~){1,2}mode"
        r"|(?:an?|the|my)~(?:[a-z-]+~){0,4}(?:ai|assistant|model|chatbot|bot|agent|hacker|persona"
        r"|character|pirate|terminal|expert))|from~now~on~you(?:~are|.re|~will|~must|~shall|~have)"
        r"|act~as~(?:if~you"
        r"|an?~(?:ai|assistant|language|unrestricted|evil|unfiltered|uncensored|chatbot))|you~(?:will"
        r"|are~going~to)~(?:now~)?(?:act|play|pretend|behave|respond|simulate)"
        r"|pretend~(?:that~you|you|to~be)|(?:enter|enable|activate|switch~to|in)~(?:(?:the|an?|your)~)?(?:developer"
        r"|dan|god|debug|jailbreak|unrestricted|admin|maintenance|sudo)~mode|do~anything~now|jailbroken"
        r"|(?:with|has|have)~(?:no|zero)~(?:ethical|moral|content|safety)?~?(?:restrictions|limitations"
        r"|filters?|guidelines|rules|limits|boundaries)"
        r"|without~any~(?:ethical|moral|content|safety)?~?(?:restrictions|limitations|filters?|guidelines"
        r"|rules|censorship)|(?:unrestricted|unfiltered|uncensored|amoral)~(?:ai|assistant|model"
        r"|chatbot|language|response|answer)s?)\b",
    ),
    # What the model was told in confidence
    _kind(
        "prompt_leak",
        None,
        r"\b(?:reveal|show|print|repeat|display|output|tell|give|share|leak|disclose|expose|dump"
        r"|recite|echo|return|copy|paste|write|what(?:~is|~are|.s|~were|~was)|list|provide)~(?:(?:me"
        r"|us|out|verbatim|exactly|back|all|of|the|your|full|entire|whole|complete"
        r"|exact|first|and|contents?|text|it|with|to)~){0,6}"
        r"(?:(?:system|initial|original|hidden|secret|internal|confidential|previous|developer|pre)~?(?:prompts?"
        r"|instructions?|messages?|rules)|(?:words|text|everything|sentences?|lines?|content|instructions"
        r"|prompt)~(?:written~|printed~|stated~)?above|your~(?:(?:own|current|exact)~)?(?:instructions"
        r"|prompt|guidelines|rules|directives))\b",
    ),
    # Ways out for data
    _kind(
        "exfiltration",
        r"!\[[^\]]{0,80}\]\(|<img~|webhook\.site|requestbin|pipedream|ngrok|burpcollab|oast\.|interact\.sh"
        r"|beeceptor|requestcatcher|dnslog",
        r"!\[[^\]\n]{0,200}\]\(\s?(?:https?:)?//[^)\s]{1,300}[?&/][^)\s=&?]{0,60}=?(?:\{|%7B|<|\$|\[)[^)\n]{0,200}\)"
        r"|!\[[^\]\n]{0,200}\]\(\s?(?:https?:)?//[^)\s]{1,300}[?&][^)\s=&]{1,40}=[^)\s]{0,800}\)"
        r"|<img\s[^>]{0,200}src\s?=\s?[\"']?(?:https?:)?//[^>\s]{1,300}\?[^>\s=&]{1,40}=[^>\n]{0,300}>"
        r"|\b(?:webhook\.site|[a-z0-9.-]{1,60}\.(?:requestbin\.(?:com|net)|pipedream\.net|ngrok(?:-free)?\.(?:io"
        r"|app|dev)|burpcollaborator\.net|oast\.(?:fun|pro|live|site|online|me)|interact\.sh|beeceptor\.com"
        r"|requestcatcher\.com|dnslog\.cn))\b",
    ),
    _kind(
        "exfiltration",
        r"\b(?:to|at|into|via|using|in)~(?:(?:the|this|my|our|following|url|address|endpoint|server"
        r"|webhook|e?-?mail)~){0,5}(?:https?://|[0-9a-z._%+-]+@|www\.|attacker|[0-9]+\.[0-9]+\.)",
        r"\b(?:send|post|upload|forward|e-?mail|transmit|exfiltrate|leak|submit|append|deliver|copy)~(?:(?:me"
        r"|us|it|all|of|the|a|any|your|user.?s?|full|entire|this|their|his|her|copy|contents?|complete"
        r"|every|private|customer)~){0,7}"
        r"(?:conversation|chat|history|system~prompt|prompt|passwords?|credentials?|secrets?|api~keys?"
        r"|keys|tokens?|private~keys?|ssh~keys?|environment~variables|env~vars?|cookies|personal~(?:data"
        r"|information)|credit~card|files?|emails?|messages|database|records)\b[^\n]{0,80}?\b(?:to"
        r"|at|into|via|using|in)~(?:(?:the|this|my|our|following|url|address|endpoint|server|webhook"
        r"|e?-?mail)~){0,5}(?:https?://|[0-9a-z._%+-]{1,64}@[0-9a-z-]{1,63}\.|www\.|attacker|[0-9]{1,3}\.[0-9]{1,3}\.)",
    ),
    # Done behind the person's back
    _kind(
        "concealment",
        None,
        r"\b(?:do~not|don.t|never|must~not|should~not|without)~(?:ever~)?(?:tell(?:ing)?|mention(?:ing)?"
        r"|inform(?:ing)?|reveal(?:ing)?|alert(?:ing)?|notify(?:ing)?|disclos(?:e|ing)|let(?:ting)?"
        r"|show(?:ing)?|ask(?:ing)?|explain(?:ing)?)~(?:(?:this|that|it|any|of|to|about|anything"
        r"|the|these|instructions?)~){0,5}(?:users?|human|person|operator|customer|owner|anyone|anybody)\b"
        r"|\b(?:secretly|silently|quietly|covertly)~(?:(?:and|then|also)~)?(?:send|read|copy|call"
        r"|upload|forward|execute|run|add|include|append|delete|post|fetch|exfiltrate|transfer|email"
        r"|invoke)\b"
        r"|<(?:important|critical|system-reminder|hidden|secret|instructions?~for~(?:the~)?(?:ai|assistant|model))>",
    ),
    # Orders to whoever reads
    _kind(
        "addressed_to_model",
        None,
        r"\b(?:attention|note~to|message~(?:to|for)|instructions?~(?:to|for)|important~(?:message"
        r"|note|instructions?)~(?:to|for)|dear|hey|hello)~(?:(?:the|all|any|every|an?|this|reading"
        r"|other)~){0,3}(?:ai|llms?|ai~(?:assistant|agent|model)s?|assistants?|language~models?|chatbots?"
        r"|chatgpt|claude|gemini|copilot|ai~reviewers?|agents?~reading)\b"
        r"|\bif~you~are~an?~(?:ai|llm|assistant|language~model|ai~(?:assistant|agent|model)|large~language~model"
        r"|bot|agent)\b"
        r"|\b(?:as~an?|any|the|all)~(?:ai|llm|ai~(?:assistant|agent|model)|language~model|assistant)s?~(?:reading"
        r"|processing|summari[sz]ing|reviewing|that~reads|which~reads|who~reads|must|should~(?:now"
        r"|instead|also|always|first))\b"
        r"|\b(?:before|prior~to|when|whenever|after)~(?:using|calling|invoking|running)~(?:this|any(?:~other)?"
        r"|the)~(?:tool|function)s?~(?:(?:you|always|first|please|make~sure~to|the~assistant|it~is)~){0,4}(?:must"
        r"|read|call|invoke|access|send|open|have~to|need~to|required)\b"
        r"|\b(?:system|admin|administrator|developer|security|emergency)~override\b",
    ),
    # Not shown, but read
    _kind(
        "hidden_text",
        r"<!--|display\s?:\s?none|visibility\s?:\s?hidden|font-size\s?:\s?0|opacity\s?:\s?0",
        r"<!--[^>]{0,400}?\b(?:ignore|disregard|override|instructions?~(?:to|for)|ai~(?:assistant"
        r"|agent|model)|assistant|llm|language~model|system~prompt|you~(?:must|should|are)|do~not~(?:tell"
        r"|mention))\b"
        r"|(?:display\s?:\s?none|visibility\s?:\s?hidden|font-size\s?:\s?0(?:px|pt|em)?\b|opacity\s?:\s?0\b)[^>]{0,120}>[^<]{0,300}?\b(?:ignore"
        r"|disregard|override|instructions?|assistant|llm|ai~(?:assistant|agent|model)|system~prompt"
        r"|you~(?:must|should|are~now)|send|forward)\b",
    ),
)
