"""Tables that people write: CSV and Parquet files with a line of column names."""

from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import printable, shorten

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = (",", ";", "\t")


def read_table(path: Path) -> "pd.DataFrame":
    """Read a CSV or Parquet file; all cells of a CSV file are strings.

    Args:
        path: the file. One that ends in .parquet or .pq is a Parquet file; columns of others are separated by commas,
            semicolons or tabs.

    Raises:
        UserError: it is not such a file.
    """
    import pandas as pd

    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        if is_parquet:
            return pd.read_parquet(path)
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(_SEPARATORS, key=header.count)
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError, ImportError) as error:
        reason = shorten(str(error), 150)
        raise UserError(
            f"{printable(str(path))} cannot be read as a {'Parquet' if is_parquet else 'CSV'} file ({reason}). It"
            " must be a CSV file in UTF-8 with a line of column names, or a Parquet file ending in .parquet. Save"
            " it again as one of these."
        ) from error
