"""Detection of labels changed by a spreadsheet program: genes that became dates, ids that became numbers.

Source: Ziemann et al. 2016, doi:10.1186/s13059-016-1044-7; Abeysooriya et al. 2021, doi:10.1371/journal.pcbi.1008984;
the gene names that were changed since are those of Bruford et al. 2020, doi:10.1038/s41588-020-0669-3.
"""

from __future__ import annotations

import re

_MONTHS = {
    "JAN": ("jan", "january", "janv", "januar", "jän", "ene", "gen"),
    "FEB": ("feb", "february", "fév", "févr", "februar"),
    "MARCH": ("mar", "march", "mrz", "mär", "märz", "mars"),
    "APR": ("apr", "april", "avr", "abr"),
    "MAY": ("may", "mai", "mag"),
    "JUN": ("jun", "june", "juin", "juni", "giu"),
    "JUL": ("jul", "july", "juil", "juli", "lug"),
    "AUG": ("aug", "august", "août", "ago"),
    "SEPT": ("sep", "sept", "september", "set"),
    "OCT": ("oct", "october", "okt", "oktober", "ott"),
    "NOV": ("nov", "november"),
    "DEC": ("dec", "december", "dez", "dezember", "déc", "dic"),
}
_BY_WORD = {word: name for name, words in _MONTHS.items() for word in words}
_RENAMED = {
    "MARCH": "MARCH{n} (now MARCHF{n}) or MARC{n} (now MTARC{n})",
    "SEPT": "SEPT{n} (now SEPTIN{n})",
    "DEC": "DEC{n} (DEC1 is now DELEC1)",
    "OCT": "OCT{n} (OCT4 is POU5F1)",
}
_DAY_MONTH = re.compile(r"([0-9]{1,2})\.?[-/ .]\s?([^\W\d_]{3,9})\.?(?:[-/ .][0-9]{2,4})?")
_MONTH_DAY = re.compile(r"([^\W\d_]{3,9})\.?[-/ .]([0-9]{1,2})")
_DATE = re.compile(
    r"((?:19|20)[0-9]{2})([-/.])([0-9]{1,2})\2([0-9]{1,2})(?: 00:00(?::00)?)?"
    r"|([0-9]{1,2})([-/.])([0-9]{1,2})\6((?:19|20)?[0-9]{2})(?: 00:00(?::00)?)?"
)
_SCIENTIFIC = re.compile(r"([0-9])(?:[.,]([0-9]+))?E\+([0-9]{2,3})", re.IGNORECASE)


def likely_original(value: str, *, is_name: bool = True) -> str:
    """The probable original of a cell that a spreadsheet changed; empty if it looks unchanged.

    Args:
        value: The cell.
        is_name: Whether it should name a gene, a compound or a reagent, so that a date is no value of it.
    """
    text = value.strip()
    if match := _SCIENTIFIC.fullmatch(text):
        return _long_number(match)
    return _gene_of_date(text) if is_name else ""


def _long_number(match: re.Match[str]) -> str:
    lead, rest, exponent = match[1], match[2] or "", int(match[3])
    n_after = exponent - len(rest)
    if n_after < 0 or exponent > 30:
        return "a number that was shortened"
    digits = lead + rest
    clone = f"{digits}{'?' * max(7 - len(digits), 0)}E{exponent:02d}"
    if exponent > 15:
        return f"an id with an E in it, such as {clone}"
    return f"{digits}{'?' * n_after}, digits that the spreadsheet dropped, or an id with an E in it, such as {clone}"


def _gene_of_date(text: str) -> str:
    for pattern, month_at, day_at in ((_DAY_MONTH, 2, 1), (_MONTH_DAY, 1, 2)):
        if (match := pattern.fullmatch(text)) and match[month_at].casefold() in _BY_WORD:
            return _named(_BY_WORD[match[month_at].casefold()], int(match[day_at]))
    if match := _DATE.fullmatch(text):
        if match[1]:
            return _of_numbers(((match[3], match[4]),))
        return _of_numbers(((match[5], match[7]), (match[7], match[5])))
    return ""


def _of_numbers(pairs: tuple[tuple[str, str], ...]) -> str:
    """Of pairs of month and day, either of which may come first in a date without letters."""
    names = list(_MONTHS)
    found = [_named(names[int(m) - 1], int(day)) for m, day in pairs if 1 <= int(m) <= 12 and 1 <= int(day) <= 31]
    return " or ".join(dict.fromkeys(found))


def _named(month: str, number: int) -> str:
    return _RENAMED.get(month, month + "{n}").format(n=number) if 1 <= number <= 31 else ""
