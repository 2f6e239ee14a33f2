"""The embedded transport: queues in one SQLite file, shared by all processes of a machine.

`address` is what a URL says, `place` where the file lies, `database` one connection to it,
`schema` the tables; `rows` are messages and `store` what is done to them inside a transaction;
`life` tells which consumers live, and `upkeep` gives back what the dead held. Then the three
objects of the seam: `driver`, `publisher`, `consumer`; and `examination`, for `workqueue doctor`.
"""

from workqueue.transports.sqlite.driver import SQLiteTransport

__all__ = ["SQLiteTransport"]
