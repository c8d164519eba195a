"""Files of records that are read one record at a time, in any order: JSON, JSON lines, parquet, `datasets`, tars."""

from data_modules.containers.opening import open_records
from data_modules.containers.protocol import Records

__all__ = ["Records", "open_records"]
