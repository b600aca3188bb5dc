"""Check digits of national numbers. Each function takes the text as it was found and says whether it can be one."""

from __future__ import annotations

import datetime
from collections.abc import Sequence


def digits(text: bytes) -> list[int]:
    """The decimal digits of ``text``, without what stands between them."""
    return [byte - 48 for byte in text if 48 <= byte <= 57]


def _compact(text: bytes) -> str:
    return "".join(chr(byte) for byte in text if chr(byte).isalnum()).upper()


def _dot(values: Sequence[int], weights: Sequence[int]) -> int:
    return sum(value * weight for value, weight in zip(values, weights, strict=False))


def _several(values: Sequence[int]) -> bool:
    return len(set(values)) > 1


def luhn(text: bytes) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for index, digit in enumerate(reversed(digits(text))):
        doubled = digit * 2 if index % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def _date(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def _born(values: Sequence[int], order: str = "ymd") -> bool:
    """Whether six digits are a date in either century."""
    parts = dict(zip(order, (10 * values[i] + values[i + 1] for i in (0, 2, 4)), strict=True))
    return any(_date(century + parts["y"], parts["m"], parts["d"]) for century in (1900, 2000))


def us_ssn(text: bytes) -> bool:
    """Never issued: areas 000, 666 and 9xx, group 00, serial 0000; and the numbers of advertisements."""
    area, group, serial = text.decode().replace(" ", "-").split("-")
    known = (area, group, serial) in (("078", "05", "1120"), ("219", "09", "9999"), ("123", "45", "6789"))
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000" and not known


def us_itin(text: bytes) -> bool:
    """Groups in use: 50 to 65, 70 to 88, 90 to 92, 94 to 99."""
    group = int(text.decode().replace(" ", "-").split("-")[1])
    return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99


def uk_nino(text: bytes) -> bool:
    """Prefixes that are not given out."""
    return _compact(text)[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def uk_nhs(text: bytes) -> bool:
    """Weights 10 to 2, modulo 11."""
    values = digits(text)
    check = 11 - _dot(values, range(10, 1, -1)) % 11
    return len(values) == 10 and _several(values) and check != 10 and check % 11 == values[9]


def es_dni(text: bytes) -> bool:
    """DNI and NIE: the letter is the number modulo 23."""
    compact = _compact(text)
    number = compact[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return number.isdigit() and _several(digits(text)) and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == compact[-1]


def fr_nir(text: bytes) -> bool:
    """Key = 97 minus the number modulo 97; Corsica writes 2A and 2B."""
    compact = _compact(text).replace("2A", "19", 1).replace("2B", "18", 1)
    return len(compact) == 15 and compact.isdigit() and 97 - int(compact[:13]) % 97 == int(compact[13:])


_ODD = dict(
    zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22,
         25, 24, 23), strict=True)
)  # fmt: skip


def it_codice_fiscale(text: bytes) -> bool:
    """The sixteenth letter is the sum of the tables of odd and even places, modulo 26."""
    compact = _compact(text)
    even = sum(int(c) if c.isdigit() else ord(c) - 65 for c in compact[1:15:2])
    return chr(65 + (even + sum(_ODD[c] for c in compact[:15:2])) % 26) == compact[15]


def de_steuer_id(text: bytes) -> bool:
    """ISO 7064 mod 11,10; of the first ten digits one or two are repeated."""
    values = digits(text)
    if len(values) != 11 or values[0] == 0 or not 8 <= len(set(values[:10])) <= 9:
        return False
    product = 10
    for value in values[:10]:
        product = ((product + value) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == values[10]


def nl_bsn(text: bytes) -> bool:
    """The proof by eleven."""
    values = digits(text)
    return len(values) == 9 and _several(values) and _dot(values, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def be_national(text: bytes) -> bool:
    """97 minus the number modulo 97, with a 2 before it for those born from 2000."""
    number = "".join(map(str, digits(text)))
    body, check = int(number[:9]), int(number[9:])
    return len(number) == 11 and check in (97 - body % 97, 97 - (2_000_000_000 + body) % 97)


def br_cpf(text: bytes) -> bool:
    """Two digits modulo 11."""
    values = digits(text)
    first = _dot(values, range(10, 1, -1)) * 10 % 11 % 10
    second = _dot(values, range(11, 1, -1)) * 10 % 11 % 10
    return len(values) == 11 and _several(values) and (first, second) == (values[9], values[10])


def br_cnpj(text: bytes) -> bool:
    """Two digits modulo 11."""
    values = digits(text)
    weights = (6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2)
    first = _dot(values, weights[1:]) % 11
    second = _dot(values, weights) % 11
    wanted = tuple(0 if rest < 2 else 11 - rest for rest in (first, second))
    return len(values) == 14 and _several(values) and wanted == (values[12], values[13])


def pl_pesel(text: bytes) -> bool:
    """Weights 1 3 7 9; the month carries the century."""
    values = digits(text)
    month = (10 * values[2] + values[3]) % 20
    return len(values) == 11 and 1 <= month <= 12 and (_dot(values[:10], (1, 3, 7, 9) * 3) + values[10]) % 10 == 0


def se_personnummer(text: bytes) -> bool:
    """A date and Luhn over ten digits."""
    values = digits(text)[-10:]
    day = 10 * values[4] + values[5]
    return _born((*values[:4], *divmod(day - 60 if day > 60 else day, 10))) and luhn(bytes(48 + v for v in values))


def fi_hetu(text: bytes) -> bool:
    """A date, and the number modulo 31 as a character."""
    compact = text.decode().upper()
    number = int(compact[:6] + compact[7:10])
    return _born(digits(text)[:6], "dmy") and "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == compact[10]


def no_fnr(text: bytes) -> bool:
    """A date and two digits modulo 11."""
    values = digits(text)
    day = 10 * values[0] + values[1]
    first = (11 - _dot(values, (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11) % 11
    second = (11 - _dot(values, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11) % 11
    born = _born((*divmod(day - 40 if day > 40 else day, 10), *values[2:6]), "dmy")
    return len(values) == 11 and born and (first, second) == (values[9], values[10])


def dk_cpr(text: bytes) -> bool:
    """A date; its check digit has not been kept since 2007."""
    return _born(digits(text)[:6], "dmy")


def ch_ahv(text: bytes) -> bool:
    """EAN-13."""
    values = digits(text)
    return len(values) == 13 and (_dot(values, (1, 3) * 7)) % 10 == 0


def cz_rodne_cislo(text: bytes) -> bool:
    """A date, women's months with 50 added, and ten digits divisible by 11."""
    values = digits(text)
    month = (10 * values[2] + values[3]) % 50 % 20
    return len(values) == 10 and 1 <= month <= 12 and int("".join(map(str, values))) % 11 == 0


def pt_nif(text: bytes) -> bool:
    """Weights 9 to 2, modulo 11."""
    values = digits(text)
    check = 11 - _dot(values, range(9, 1, -1)) % 11
    return len(values) == 9 and values[8] == (0 if check > 9 else check)


def ie_pps(text: bytes) -> bool:
    """Weights 8 to 2 and the second letter times nine, modulo 23."""
    compact = _compact(text)
    extra = 9 * (ord(compact[8]) - 64) if len(compact) > 8 and compact[8] != "W" else 0
    return "WABCDEFGHIJKLMNOPQRSTUV"[(_dot(digits(text), range(8, 1, -1)) + extra) % 23] == compact[7]


def tr_kimlik(text: bytes) -> bool:
    """Two check digits."""
    v = digits(text)
    return len(v) == 11 and v[0] != 0 and (7 * sum(v[0:9:2]) - sum(v[1:8:2])) % 10 == v[9] and sum(v[:10]) % 10 == v[10]


_D = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678", "5987604321", "6598710432", "7659821043",
    "8765932104", "9876543210",
)  # fmt: skip
_P = ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258")


def in_aadhaar(text: bytes) -> bool:
    """Verhoeff."""
    values, check = digits(text), 0
    for index, value in enumerate(reversed(values)):
        check = int(_D[check][int(_P[index % 8][value])])
    return len(values) == 12 and values[0] > 1 and check == 0


def cn_resident_id(text: bytes) -> bool:
    """A date and ISO 7064 mod 11-2."""
    values = digits(text[:17])
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    year, month, day = int(text[6:10]), int(text[10:12]), int(text[12:14])
    return (
        1900 <= year < 2100
        and _date(year, month, day)
        and "10X98765432"[_dot(values, weights) % 11] == chr(text[17]).upper()
    )


def kr_rrn(text: bytes) -> bool:
    """A date and a digit modulo 11 (numbers of before October 2020 keep it)."""
    values = digits(text)
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    return len(values) == 13 and _born(values[:6]) and (11 - _dot(values, weights) % 11) % 10 == values[12]


def jp_my_number(text: bytes) -> bool:
    """Weights 6 to 2 and 7 to 2, modulo 11."""
    values = digits(text)
    rest = _dot(values, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return len(values) == 12 and _several(values) and values[11] == (0 if rest < 2 else 11 - rest)


def au_tfn(text: bytes) -> bool:
    """Weights, modulo 11."""
    values = digits(text)
    return len(values) == 9 and _several(values) and _dot(values, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def au_medicare(text: bytes) -> bool:
    """Weights, modulo 10."""
    values = digits(text)
    return 2 <= values[0] <= 6 and _dot(values, (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == values[8]


def ca_sin(text: bytes) -> bool:
    """Luhn; none begins with 0 or 8."""
    values = digits(text)
    return len(values) == 9 and values[0] not in (0, 8) and _several(values) and luhn(text)


def za_id(text: bytes) -> bool:
    """A date and Luhn."""
    values = digits(text)
    return len(values) == 13 and _born(values[:6]) and values[10] in (0, 1) and luhn(text)


def sg_nric(text: bytes) -> bool:
    """Weights, modulo 11, with a table for each series."""
    compact = _compact(text)
    total = _dot(digits(text), (2, 7, 6, 5, 4, 3, 2)) + {"T": 4, "G": 4, "M": 3}.get(compact[0], 0)
    table = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "G": "XWUTRQPNMLK", "M": "XWUTRQPNJLK"}
    return table[compact[0]][total % 11] == compact[8]


def mx_curp(text: bytes) -> bool:
    """Weights 18 to 2 over digits and letters with the Spanish one, modulo 10."""
    alphabet = "0123456789ABCDEFGHIJKLMN\u00d1OPQRSTUVWXYZ"
    compact = text.decode().upper()
    total = sum(alphabet.index(c) * weight for c, weight in zip(compact, range(18, 1, -1), strict=False))
    return (10 - total % 10) % 10 == int(compact[17]) if compact[17].isdigit() else False


def us_aba(text: bytes) -> bool:
    """Weights 3 7 1, modulo 10."""
    values = digits(text)
    return len(values) == 9 and _several(values) and _dot(values, (3, 7, 1) * 3) % 10 == 0
