"""Errors of the three databases, judged by their codes: SQLSTATE (PostgreSQL), errno (MySQL, MariaDB), result code
(SQLite). The words of an error change with its version and language, so they decide nothing."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, StatementError


class Fault(StrEnum):
    """The subject of an error that a database raised."""

    DATA = "data"
    """The values of a row. Only such an error may touch the job of that row."""
    CONFLICT = "conflict"
    """Another transaction. The same transaction may succeed when it is run again."""
    TIMEOUT = "timeout"
    """A statement or lock took too long, perhaps by a setting of the connection."""
    OUTAGE = "outage"
    """The server or the connection: stopped, read-only, full, out of memory or connections, damaged."""
    SCHEMA = "schema"
    """A table or column that is missing."""
    OTHER = "other"
    """A statement that the server does not take."""


LASTING = (Fault.DATA, Fault.SCHEMA, Fault.OTHER)
"""Faults that another try does not mend."""


def fault_of(error: BaseException) -> Fault:
    """The subject of an error that was raised while a database was used."""
    if not isinstance(error, DBAPIError):
        # Values that a driver cannot bind; else a pool, the memory or the files of this process are exhausted.
        return Fault.DATA if isinstance(error, ABOUT_DATA) else Fault.OUTAGE
    code = code_of(error)
    if isinstance(code, str):
        return _POSTGRES.get(code) or _POSTGRES.get(code[:2], Fault.OTHER)
    if code is None:  # raised by the driver itself
        about_values = not error.connection_invalidated and isinstance(
            error, DataError | IntegrityError | ProgrammingError
        )
        return Fault.DATA if about_values else Fault.OUTAGE
    if hasattr(error.orig, "sqlite_errorcode"):
        if code == _SQLITE_ERROR and "no such" in str(error.orig):
            return Fault.SCHEMA  # SQLite has no code for it
        return _SQLITE.get(code) or _SQLITE.get(code & 0xFF, Fault.OTHER)
    # Below 1000 are the errors of files and storage engines, from 2000 to 2999 those of the client.
    return Fault.OUTAGE if code < 1000 or 2000 <= code < 3000 else _MYSQL.get(code, Fault.OTHER)


ABOUT_DATA = (StatementError, ValueError, TypeError, OverflowError, RecursionError)
"""Errors about a row's values that Python raises before the database gets them. Of the database's own errors,
`Database` raises only those about data; the others become LedgerUnavailable."""


def code_of(error: DBAPIError) -> str | int | None:
    """The database's code for an error: a SQLSTATE, errno or result code; None if its driver raised the error."""
    original: Any = error.orig
    if (args := getattr(original, "args", ())) and isinstance(args[0], int):
        return args[0]  # first: drivers of MySQL know a SQLSTATE as well, which says less
    codes = (getattr(original, name, None) for name in ("errno", "sqlite_errorcode", "sqlstate", "pgcode"))
    return next((code for code in codes if code is not None), None)


def describe(error: BaseException) -> str:
    """The first line of an error, with its code where the text lacks it."""
    if not isinstance(error, DBAPIError):
        return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    line = next(iter(str(error.orig).strip().splitlines()), "") or type(error.orig).__name__
    code = getattr(error.orig, "sqlite_errorname", None) or code_of(error)
    return line if code is None or str(code) in line else f"{line} [{code}]"


def is_lost_transaction(error: BaseException) -> bool:
    """Whether a session was used again after its connection was lost; SQLAlchemy knows it by this code."""
    return isinstance(error, sa.exc.PendingRollbackError) and error.code == "8s2b"


# By code or by class, the first two characters of a code.
_POSTGRES: dict[str, Fault] = {
    "08": Fault.OUTAGE,  # connection exceptions
    "21": Fault.DATA,
    "22": Fault.DATA,
    "23": Fault.DATA,  # constraints
    "25006": Fault.OUTAGE,  # read-only
    "25P03": Fault.OUTAGE,  # the transaction was idle for too long
    "25P04": Fault.OUTAGE,  # the transaction took too long
    "26": Fault.OUTAGE,  # a prepared statement that is on another connection: a pooler in between
    "28": Fault.OUTAGE,  # authorization of the connection
    "3D": Fault.OUTAGE,  # no such database
    "3F": Fault.SCHEMA,
    "38": Fault.DATA,  # functions and triggers
    "39": Fault.DATA,
    "40": Fault.CONFLICT,  # serialization failures, deadlocks, conflicts with recovery
    "40003": Fault.OUTAGE,  # whether the statement was run is unknown
    "42P01": Fault.SCHEMA,
    "42703": Fault.SCHEMA,
    "42P05": Fault.OUTAGE,  # a prepared statement of another client: a pooler in between
    "44": Fault.DATA,  # WITH CHECK OPTION
    "53": Fault.OUTAGE,  # disk full, out of memory, too many connections
    "54": Fault.DATA,  # limits of the program, such as the size of an index row
    "55": Fault.TIMEOUT,  # 55P03: lock_timeout
    "57": Fault.OUTAGE,  # shutdown, crash, starting up
    "57014": Fault.TIMEOUT,  # statement_timeout
    "58": Fault.OUTAGE,  # I/O errors
    "F0": Fault.OUTAGE,  # configuration file
    "P0": Fault.DATA,  # raised by a trigger
    "XX": Fault.OUTAGE,  # internal error, damaged data or index
}

_MYSQL: dict[int, Fault] = (
    dict.fromkeys((1020, 1213), Fault.CONFLICT)  # deadlocks, and transactions that Galera does not certify
    | dict.fromkeys(
        (
            1205,  # lock wait timeout
            1317,  # query interrupted
            1969,  # max_statement_time
            3024,  # max_execution_time
            3058,  # GET_LOCK
            3572,  # NOWAIT
        ),
        Fault.TIMEOUT,
    )
    | dict.fromkeys(
        (
            1021,  # disk full
            1026,  # error writing a file
            1030,  # error from the storage engine
            1036,  # table is read-only
            1037,  # out of memory
            1038,  # out of sort memory
            1040,  # too many connections
            1041,  # out of resources
            1042,  # cannot get the host's name
            1043,  # bad handshake
            1044,  # access denied to the database
            1045,  # access denied
            1047,  # Galera: not ready
            1049,  # no such database
            1053,  # shutdown
            1077,
            1078,
            1079,
            1080,
            1114,  # table full: the disk is
            1129,  # host is blocked
            1130,  # host is not allowed
            1135,  # cannot create a thread
            1152,  # aborted connection
            1154,  # errors on the network, to 1161
            1155,
            1156,
            1157,
            1158,
            1159,
            1160,
            1161,
            1180,  # error at COMMIT
            1181,  # error at ROLLBACK
            1184,  # aborted connection
            1194,  # table is crashed
            1195,
            1203,  # too many connections of this user
            1206,  # lock table full
            1223,  # a global read lock is held
            1226,  # limit of the user's resources
            1290,  # --read-only
            1637,  # too many transactions
            1712,  # index is damaged
            1792,  # the transaction is read-only
            1812,  # tablespace is missing
            1815,  # internal error
            1836,  # read-only mode
            1877,  # table is damaged
            1878,  # temporary file cannot be written
            1927,  # connection was killed
            3100,  # group replication refuses the commit
            3101,  # group replication rolled back
            3168,  # server is not available
            3169,  # session was killed
            4031,  # the client was idle for too long
        ),
        Fault.OUTAGE,
    )
    | dict.fromkeys((1054, 1146), Fault.SCHEMA)
    | dict.fromkeys(
        (
            1022,  # duplicate key
            1048,  # NOT NULL
            1062,  # duplicate key
            1118,  # row too large
            1138,
            1153,  # larger than max_allowed_packet
            1169,
            1216,  # foreign keys
            1217,
            1264,  # out of range
            1265,  # truncated
            1267,  # collations that do not mix
            1292,  # wrong value
            1300,  # not valid in its character set
            1301,
            1364,
            1365,
            1366,  # wrong value
            1367,
            1406,  # too long
            1411,
            1441,  # time out of range
            1451,
            1452,
            1526,
            1644,  # SIGNAL of a trigger
            1690,  # out of range
            1713,
            3140,  # JSON
            3141,
            3819,  # CHECK
            4025,  # CHECK of MariaDB
        ),
        Fault.DATA,
    )
)

_SQLITE_ERROR = 1
# By extended or primary result code.
_SQLITE: dict[int, Fault] = {
    2: Fault.OUTAGE,  # INTERNAL
    3: Fault.OUTAGE,  # PERM
    4: Fault.OUTAGE,  # ABORT
    5: Fault.TIMEOUT,  # BUSY
    6: Fault.TIMEOUT,  # LOCKED
    7: Fault.OUTAGE,  # NOMEM
    8: Fault.OUTAGE,  # READONLY
    9: Fault.TIMEOUT,  # INTERRUPT
    10: Fault.OUTAGE,  # IOERR
    11: Fault.OUTAGE,  # CORRUPT
    13: Fault.OUTAGE,  # FULL
    14: Fault.OUTAGE,  # CANTOPEN
    15: Fault.OUTAGE,  # PROTOCOL
    17: Fault.CONFLICT,  # SCHEMA: it has changed
    18: Fault.DATA,  # TOOBIG
    19: Fault.DATA,  # CONSTRAINT
    20: Fault.DATA,  # MISMATCH
    22: Fault.OUTAGE,  # NOLFS
    26: Fault.OUTAGE,  # NOTADB
    517: Fault.CONFLICT,  # BUSY_SNAPSHOT
}
