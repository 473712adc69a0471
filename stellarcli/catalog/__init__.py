"""The output table: its columns and flag bits, reading, atomic writing, matching.

In memory a table is a NumPy structured array. On disk it is FITS (also on a pipe),
CSV, ECSV, VOTable or Parquet, told apart by the file name.

========  ==========================================================================
flags     `Flag` bits, what they mean, and which are `BAD`
table     `Column`, `Table` and the array of rows
text      file names and other text as ASCII
files     formats, checks before the work, temporary names, delivery
writing   `write`, and `write_parts` for what is made in pieces
reading   `read`
matching  `match`: rows of two tables that belong together
========  ==========================================================================
"""

from stellarcli.catalog.files import (
    FORMATS,
    check_absent,
    check_directory,
    check_output,
    deliver,
    explained,
    literal,
    nearest,
    temporary_name,
    write_checksum,
)
from stellarcli.catalog.flags import (
    BAD,
    FAILED,
    FLAG_MEANING,
    Flag,
    describe_flags,
    flag_cards,
)
from stellarcli.catalog.matching import (
    DECLINATIONS,
    FILES,
    FILLERS,
    IDENTIFIERS,
    RIGHT_ASCENSIONS,
    WAYS,
    Match,
    Matcher,
    check_radius,
    match,
)
from stellarcli.catalog.reading import from_astropy, read
from stellarcli.catalog.table import (
    Column,
    Table,
    columns,
    columns_of,
    find,
    rows,
    with_columns,
)
from stellarcli.catalog.text import decode_name, encode_name, located
from stellarcli.catalog.writing import Extension, string_widths, write, write_parts

__all__ = [
    "BAD",
    "DECLINATIONS",
    "FAILED",
    "FILES",
    "FILLERS",
    "FLAG_MEANING",
    "FORMATS",
    "IDENTIFIERS",
    "RIGHT_ASCENSIONS",
    "WAYS",
    "Column",
    "Extension",
    "Flag",
    "Match",
    "Matcher",
    "Table",
    "check_absent",
    "check_directory",
    "check_output",
    "check_radius",
    "columns",
    "columns_of",
    "decode_name",
    "deliver",
    "describe_flags",
    "encode_name",
    "explained",
    "find",
    "flag_cards",
    "from_astropy",
    "literal",
    "located",
    "match",
    "nearest",
    "read",
    "rows",
    "string_widths",
    "temporary_name",
    "with_columns",
    "write",
    "write_checksum",
    "write_parts",
]
