"""Words of a caption, as the published caption scores count them.

Those scores are defined on the output of a Penn Treebank tokeniser (Stanford's PTBTokenizer 3.4.1, lower-cased), from
which coco-caption then drops punctuation. This is that convention as one pattern, without Java: on 24,183 COCO captions
it gives the same words for all but a few lines (tests/evaluation/references/words.json has the counts).
"""

from __future__ import annotations

import html
import re
from collections import Counter

DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":"]) | frozenset(
    ["-", "--", "...", ";"]
)
"""What coco-caption drops. Brackets arrive lower-cased as `-lrb-` and so stay: published scores contain that."""

# Keep their full stop in any case of letters.
_ABBREVIATIONS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    ala ariz calif colo conn dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo
    inc cos? corp pty pte ltd plc bancorp dept bhd assn univ intl sys invt elec natl mfg mtg mt
    mr mrs ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste? ave pres lieut
    hon brig co?mdr pfc spc supts? det jr sr bros esq vs ph etc al seq alex wm jos cie cf treas tel est ext sq
    ph\\.d a\\.k\\.a bldg blvd rd ft
"""
# Are words too when written small.
_CAPITAL_ABBREVIATIONS = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
# Only before a number.
_NUMBER_ABBREVIATIONS = "nos? prop fig"

_SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_WRITTEN = {
    '"': "''",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "\u2013": "--",
    "\u2014": "--",
    "\u2026": "...",
}


def _any(patterns: str) -> str:
    return "|".join(sorted(patterns.split(), key=len, reverse=True))


# Alternatives in order; the first that matches wins.
_TOKEN = re.compile(
    rf"""
      (?P<plain>
          (?:https?://|www\.)[^\s"<>|]*[^\s"<>|.,!?)]             # addresses
        | [A-Za-z0-9][\w.%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+
        | </?[A-Za-z][^<>]*>                                      # marks such as <c>
        | [@\#][A-Za-z_]\w*                                       # names and tags
        | (?:[A-Za-z]\.)+[A-Za-z](?!\w)\.?                         # U.S., a.m., U.S.A
        | (?i:\b(?:{_any(_ABBREVIATIONS)}))\.(?!\w)
        | \b(?:{_any(_CAPITAL_ABBREVIATIONS)})\.(?!\w)
        | (?i:\b(?:{_any(_NUMBER_ABBREVIATIONS)}))\.(?=\s+\d)
        | (?<!\w)[A-Za-z]\.(?=\s+\w)                             # initials
        | 'n'
        | '(?:[2-9]0s|em|cause|til)(?!\w)
      )
    | (?P<tail>(?i:n['\u2019]t|['\u2019](?:s|d|m|ll|re|ve))(?!\w))
    | (?P<split>(?i:cannot|gonna|gotta|wanna|lemme|gimme|'tis|'twas)(?!\w))
    | (?P<word>
          [^\W\d_]+(?=n['\u2019]t(?!\w))                                # do | n't
        | \d+/\d+ (?![\w/])                                       # 1/2
        | [-+]?\.?\d+(?:[.,:]\d+)* (?:[\w-]*\w)?                  # 1,000  10:30  2nd  10-15
        | (?:o|O|d|D|l|L)['\u2019][^\W\d_]+ (?:-\w+)*                  # o'clock
        | (?i:ma['\u2019]am|y['\u2019](?=all))
        | [^\W_]\w* (?:[-&./](?=[^\W_])\w+)* (?<=\w)             # black-and-white
        | _+\w*
      )
    | (?P<mark>\.{{3,}}|-{{2,}}|[!?]+|[^\w\s])
    """,
    re.VERBOSE,
)


def words(caption: str) -> list[str]:
    """The lower-cased words of a caption, without punctuation."""
    found: list[str] = []
    for match in _TOKEN.finditer(html.unescape(caption)):
        token = match.group().lower()
        if match.lastgroup == "split":
            found.extend(_SPLIT_WORDS[token])
        elif match.lastgroup == "mark":
            found.append(_WRITTEN.get(token, token))
        else:
            found.append(token.replace("\u2019", "'"))
    return [token for token in found if token not in DROPPED]


Gram = tuple[str, ...]


def grams(found: list[str], longest: int) -> Counter[Gram]:
    """How often each run of 1 to `longest` words occurs."""
    return Counter(tuple(found[i : i + n]) for n in range(1, longest + 1) for i in range(len(found) - n + 1))
