"""The kinds of personal data that are looked for. Numbers have check digits wherever their country gave them any.

A number that is nothing but digits and whose check lets through one in ten or eleven is looked for only behind a word that
names it (``_near``), be it in the text or the name of the member that holds it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Final

from remit_broker.adapters.content import national_ids as ids
from remit_broker.adapters.content.kinds import Check, Kind, utf8

_GAP: Final = r"(?:['\"]?[^\n0-9A-Za-z]{1,4}(?:(?:number|no|num|nr|is|id|code|card)\b[^\n0-9A-Za-z]{1,4}){0,3})"


_KEY_GAP: Final = r"[^\n0-9A-Za-z]+(?:[a-z]+[^\n0-9A-Za-z]+){0,3}[a-z]{0,3}"


def _word(name: str, key: str, body: str, check: Check | None = None, *, joins: bool = False) -> Kind:
    return Kind(f"pii.{name}", rf"(?:^|[^0-9A-Za-z_.+-])({body})(?:[^0-9A-Za-z_]|$)", key, check, joins)


def _near(name: str, words: str, body: str, check: Check | None = None) -> Kind:
    return Kind(
        f"pii.{name}",
        rf"(?i)(?:^|[^A-Za-z])(?:{words}){_GAP}({body})(?:[^0-9A-Za-z_]|$)",
        rf"(?i)(?:{words}){_KEY_GAP}[0-9]",
        check,
    )


_ISSUERS: Final = (
    ("4", (13, 16, 19)), ("51-55", (16,)), ("2221-2720", (16,)), ("34", (15,)), ("37", (15,)), ("36", (14,)), ("38-39", (14,)),
    ("300-305", (14,)), ("6011", (16, 19)), ("644-649", (16, 19)), ("65", (16, 19)), ("3528-3589", (16, 19)), ("62", (16, 17, 18, 19)),
    ("50", (12, 13, 14, 15, 16, 17, 18, 19)), ("56-58", (12, 13, 14, 15, 16, 17, 18, 19)), ("67", (16, 17, 18, 19)),
    ("2200-2204", (16,)), ("1800", (15,)), ("2131", (15,)),
)  # fmt: skip


def card(text: bytes) -> bool:
    """An issuer's prefix with its length (ISO/IEC 7812), and Luhn."""
    number = "".join(map(str, ids.digits(text)))
    if len(set(number)) < 2 or not ids.luhn(text):
        return False
    for prefix, lengths in _ISSUERS:
        low, _, high = prefix.partition("-")
        if len(number) in lengths and low <= number[: len(low)] <= (high or low):
            return True
    return False


_LENGTHS: Final = (
    "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DJ:27 "
    "DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HN:28 HR:21 HU:28 "
    "IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 "
    "MK:19 MN:20 MR:27 MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 RU:33 SA:24 "
    "SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20 YE:30 "
)
_IBAN_LENGTHS: Final = {pair[:2]: int(pair[3:]) for pair in _LENGTHS.split()}


def iban(text: bytes) -> bool:
    """ISO 13616: the length of its country, and the number modulo 97 is 1."""
    compact = text.decode().replace(" ", "").replace("-", "").upper()
    if _IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _phone(text: bytes) -> bool:
    """As many digits as a telephone number has (E.164), not all the same, and not a date or an address."""
    values = ids.digits(text)
    return 8 <= len(values) <= 15 and len(set(values)) > 2


def _north_american(text: bytes) -> bool:
    values = ids.digits(text)[-10:]
    return len(set(values)) > 2 and values[0] > 1 and values[3] > 1


def _ipv4(text: bytes) -> bool:
    """An address of somebody: not unspecified, of this machine, of a link, of a network, of many or none."""
    parts = [int(part) for part in text.split(b".")]
    ours = parts[0] in (0, 127) or parts[:2] == [169, 254] or parts[0] >= 224 or parts[3] in (0, 255)
    return max(parts) <= 255 and not ours


def _ipv6(text: bytes) -> bool:
    try:
        address = ipaddress.IPv6Address(text.decode())
    except ValueError:
        return False
    return len(text) > 6 and not (
        address.is_unspecified or address.is_loopback or address.is_link_local or address.is_multicast
    )


def _email(text: bytes) -> bool:
    """RFC 5321 lengths; not a file name at two scales (``logo@2x.png``)."""
    local, _, domain = text.rpartition(b"@")
    if local.startswith(b"://"):
        return False
    return (
        len(local) <= 64
        and len(domain) <= 253
        and domain.rpartition(b".")[2].lower() not in (b"png", b"jpg", b"svg", b"gif", b"webp")
    )


_BASE58: Final = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def bitcoin(text: bytes) -> bool:
    """Base58Check, or the form of BIP 173 with its checksum (BIP 350 too)."""
    if text[:3].lower() == b"bc1":
        return _bech32(text.decode().lower())
    number = 0
    for byte in text:
        number = number * 58 + _BASE58.index(byte)
    data = number.to_bytes(25, "big") if number < 1 << 200 else b""
    return bool(data) and hashlib.sha256(hashlib.sha256(data[:21]).digest()).digest()[:4] == data[21:]


def _bech32(text: str) -> bool:
    values = [3, 3, 0, 2, 3, *("qpzry9x8gf2tvdw0s3jn54khce6mua7l".find(c) for c in text[3:])]
    check = 1
    for value in values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return -1 not in values and check in (1, 0x2BC830A3)


def _birth(text: bytes) -> bool:
    return len(ids.digits(text)) >= 6


# Keys that several kinds share, so that few have to be told apart.
_LONG: Final = r"[0-9]{10}"
_DOTTED: Final = (
    r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-|[0-9]{3}\.[0-9]{3}\.[0-9]{3}-|[0-9]{2}\.[0-9]{3}\.[0-9]{3}/|756\.?[0-9]{4}"
)
_SIX: Final = r"[0-9]{6}[-+/A-FU-Y ][0-9]"
_FOURS: Final = r"[0-9]{4}[ -][0-9]{4}"
_DASHED: Final = r"[0-9][ -][0-9]{2}[ -][0-9]{4}"
_N9: Final = r"[0-9]{3}[ .-]?[0-9]{3}[ .-]?[0-9]{3}"
_N10: Final = r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}"
_N11: Final = r"[0-9]{2,3}[ .]?[0-9]{3}[ .]?[0-9]{3}[ .-]?[0-9]{2,3}"

KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        "pii.email",
        # What stands before the host in a URL is a user and a password: taken first, and then left alone.
        r"://[^\s/@]{0,128}@|\b([0-9A-Za-z_][0-9A-Za-z_.!#$%&'*+/=?^{|}~-]{0,63}@"
        r"(?:[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?\.){1,8}[A-Za-z]{2,24})\b",
        r"[^\s@]@[0-9A-Za-z]",
        _email,
    ),
    _word(
        "iban",
        r"\b[A-Za-z]{2}[0-9]{2}[ -]?[0-9A-Za-z]{4}",
        r"(?i:[a-z]{2}[0-9]{2}(?:[ -]?[0-9a-z]{4}){2,7}(?:[ -]?[0-9a-z]{1,3})?)",
        iban,
        joins=True,
    ),
    _word("card", rf"{_LONG}|{_FOURS}|[0-9]{{4}}[ -][0-9]{{6}}", r"[1-6][0-9]{3}(?:[ -]?[0-9]){8,15}", card),
    _word("us_ssn", _DASHED, r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}|[0-8][0-9]{2} [0-9]{2} [0-9]{4}", ids.us_ssn),
    _word("us_itin", _DASHED, r"9[0-9]{2}-[0-9]{2}-[0-9]{4}|9[0-9]{2} [0-9]{2} [0-9]{4}", ids.us_itin),
    _word(
        "uk_nino",
        r"[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]",
        r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]",
        ids.uk_nino,
    ),
    _word("es_dni", r"[0-9]{7}-?[A-Z]", r"(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-HJ-NP-TV-Z]", ids.es_dni),
    _word(
        "fr_nir",
        rf"{_LONG}|\b[12] [0-9]{{2}} [0-9]{{2}}|[0-9]{{5}}2[AB]",
        r"[12] ?[0-9]{2} ?(?:0[1-9]|1[0-2]|[2-9][0-9]) ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
        ids.fr_nir,
    ),
    _word(
        "it_codice_fiscale",
        r"\b[A-Z]{6}[0-9LMNPQRSTUV]{2}",
        r"[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-EHLMPRST][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z]",
        ids.it_codice_fiscale,
    ),
    _word("be_national", _DOTTED, r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}[.-][0-9]{2}", ids.be_national),
    _word("br_cpf", _DOTTED, r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", ids.br_cpf),
    _word("br_cnpj", _DOTTED, r"[0-9]{2}\.[0-9]{3}\.[0-9]{3}/[0-9]{4}-[0-9]{2}", ids.br_cnpj),
    _word("se_personnummer", _SIX, r"(?:[0-9]{2})?[0-9]{6}[-+][0-9]{4}", ids.se_personnummer),
    _word("fi_hetu", _SIX, r"[0-3][0-9][01][0-9]{3}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]", ids.fi_hetu),
    _word("ch_ahv", rf"{_LONG}|{_DOTTED}", r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", ids.ch_ahv),
    _word("cz_rodne_cislo", _SIX, r"[0-9]{6}/[0-9]{4}", ids.cz_rodne_cislo),
    _word("cn_resident_id", _LONG, r"[1-8][0-9]{5}(?:19|20)[0-9]{9}[0-9Xx]", ids.cn_resident_id),
    _word("kr_rrn", _SIX, r"[0-9]{6}-[1-8][0-9]{6}", ids.kr_rrn),
    _word("in_aadhaar", _FOURS, r"[2-9][0-9]{3} [0-9]{4} [0-9]{4}", ids.in_aadhaar),
    _word("in_pan", r"\b[A-Z]{5}[0-9]{4}[A-Z]", r"[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]"),
    _word("sg_nric", r"\b[STFGM][0-9]{7}", r"[STFGM][0-9]{7}[A-Z]", ids.sg_nric),
    _word("mx_curp", r"\b[A-Z]{4}[0-9]{6}", r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]", ids.mx_curp),
    _word("no_fnr", rf"{_LONG}|{_SIX}", r"[0-7][0-9][014589][0-9]{3} ?[0-9]{5}", ids.no_fnr),
    _near("uk_nhs", r"nhs", _N10, ids.uk_nhs),
    _near("de_steuer_id", r"steuer|tax[ _-]?id|idnr|steuernummer|tin", _N11, ids.de_steuer_id),
    _near("nl_bsn", r"bsn|burgerservicenummer|sofi", _N9, ids.nl_bsn),
    _near("br_cpf", r"cpf", r"[0-9]{11}", ids.br_cpf),
    _near("pl_pesel", r"pesel", r"[0-9]{11}", ids.pl_pesel),
    _near("dk_cpr", r"cpr", r"[0-9]{6}-?[0-9]{4}", ids.dk_cpr),
    _near("pt_nif", r"nif|contribuinte", _N9, ids.pt_nif),
    _near("ie_pps", r"pps|ppsn", r"[0-9]{7}[A-W][A-IW]?", ids.ie_pps),
    _near("tr_kimlik", r"tckn|kimlik|t\.?c\.? no", r"[1-9][0-9]{10}", ids.tr_kimlik),
    _near("in_aadhaar", r"aadhaar|aadhar|uidai", r"[2-9][0-9]{11}", ids.in_aadhaar),
    _near(
        "jp_my_number", r"my ?number|" + utf8("マイナンバー"), r"[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{4}", ids.jp_my_number
    ),
    _near("au_tfn", r"tfn|tax file", _N9, ids.au_tfn),
    _near("au_medicare", r"medicare", r"[2-6][0-9]{3} ?[0-9]{5} ?[0-9]", ids.au_medicare),
    _near("ca_sin", r"sin|social insurance", _N9, ids.ca_sin),
    _near("za_id", r"sa[ _-]?id|rsa[ _-]?id|south african id|identity", r"[0-9]{13}", ids.za_id),
    _near(
        "us_ssn", r"ssn|social security", r"[0-8][0-9]{8}", lambda t: ids.us_ssn(t[:3] + b"-" + t[3:5] + b"-" + t[5:])
    ),
    _near("us_bank_routing", r"routing|aba", r"[0-9]{9}", ids.us_aba),
    _near(
        "passport",
        r"passport|reisepass(?:nummer)?|passeport|pasaporte|passaporto",
        r"[A-Za-z]{0,3}[0-9][0-9A-Za-z]{5,9}",
        lambda t: len(ids.digits(t)) >= 5,
    ),
    _near(
        "driver_license",
        r"driver'?s?[ _-]licen[cs]e|driving[ _-]licen[cs]e|dl",
        r"[A-Za-z]{0,3}[0-9][0-9A-Za-z-]{5,17}",
        lambda t: len(ids.digits(t)) >= 5,
    ),
    _near(
        "date_of_birth",
        r"date[ _-]of[ _-]birth|birth[ _-]?date|dob|born(?: on)?|geburtsdatum|geboren(?: am)?|fecha de nacimiento"
        r"|date de naissance",
        r"[0-9]{1,4}[./ -][0-9]{1,2}[./ -][0-9]{1,4}",
        _birth,
    ),
    _near("bank_account", r"account|acct|kontonummer|konto", r"[0-9]{8,17}", lambda t: len(set(t)) > 2),
    _word(
        "bitcoin_address",
        r"\bbc1|\b[13][1-9A-HJ-NP-Za-km-z]{2}[A-HJ-NP-Za-km-z]",
        r"bc1[02-9ac-hj-np-z]{11,71}|[13][1-9A-HJ-NP-Za-km-z]{25,33}",
        bitcoin,
    ),
    _near(
        "phone",
        r"tel|phone|telephone|mobile|cell|fax|call|whatsapp|handy|telefon|tel[a-z]fono|portable|sms",
        r"\+?\(?[0-9](?:[ ()./-]{0,2}[0-9]){6,14}",
        _phone,
    ),
    _word(
        "phone",
        r"\+[(]?[1-9]",
        r"\+[(]?[1-9][0-9]{0,2}[)]?(?:[ ()./-]{0,2}[0-9]){6,12}(?: ?(?:x|ext\.?) ?[0-9]{1,6})?",
        _phone,
    ),
    _word(
        "phone",
        r"[0-9][)]? ?[./-]?[0-9]{3}[ .-][0-9]{4}",
        r"(?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}[.-])[0-9]{3}[ .-][0-9]{4}(?: ?(?:x|ext\.?) ?[0-9]{1,6})?",
        _north_american,
    ),
    _word(
        "phone", r"\b0[0-9]+[ )/-]", r"(?:\(0[0-9]{1,4}\) ?|0[0-9]{1,4}[ /-])[0-9]{2,4}(?:[ -]?[0-9]{2,4}){1,3}", _phone
    ),
    _word("ip", r"[0-9]\.[0-9]+\.[0-9]+\.[0-9]", r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}", _ipv4),
    _word(
        "ip",
        r"[0-9A-Fa-f]:[0-9A-Fa-f]*:|::[0-9A-Fa-f]",
        r"(?:[0-9A-Fa-f]{1,4}:){1,7}(?::?[0-9A-Fa-f]{1,4}){1,7}|::(?:[0-9A-Fa-f]{1,4}:){0,6}[0-9A-Fa-f]{1,4}",
        _ipv6,
    ),
    _word(
        "mac",
        r"(?:[0-9A-Fa-f]{2}[:-]){4}",
        r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(?:-[0-9A-Fa-f]{2}){5}",
        lambda t: len(set(t)) > 3,
    ),
)
"""In the order in which they win. A kind may have several forms."""

KEYED: Final = (
    r"(?i)(?:^|[^a-z])(?:nhs|steuer|tax_?id|idnr|tin|bsn|sofi|cpf|pesel|cpr|nif|pps|ppsn|tckn"
    r"|kimlik|aadhaar|aadhar|my_?number|tfn"
    r"|medicare|sin|ssn|routing|aba|passport|reisepass|licen[cs]e|dob|birth|account|acct|konto"
    r"|phone|tel|mobile|fax|cell|telefon)"
)
"""Names of members that say what a bare number in them is."""
