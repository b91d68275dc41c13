"""Numbers as people write them into tables and lists, for all three packages.

Python's own ``int()`` and ``float()`` also take ``9_5`` for 95, and the digits of other scripts:
where it is a number of a file that is misread so, nobody hears of it.
"""

from __future__ import annotations


def real(value: object) -> float:
    """A float out of a cell of a table: a number, or text such as ``5``, ``4.25``, ``1e-3``.

    NaN and infinity pass, as ``float()`` reads them: those who know the range check it.

    Raises:
        ValueError: text that is no number.
        TypeError: neither text nor a number.
        OverflowError: an integer beyond a float.
    """
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        raise ValueError(f"could not convert string to float: {value!r}")
    return float(value)  # type: ignore[arg-type]


def whole(text: str) -> int:
    """An integer, 0 or above, out of ASCII digits and nothing else.

    Raises:
        ValueError: anything else, blanks and signs too.
    """
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)
