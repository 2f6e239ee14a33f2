"""The embedded transport: queues in one SQLite file, shared by all processes of a machine.

    address    what a URL says
    database   one connection to the file: opening it, transactions, checkpoints, errors
    schema     the tables, and whether a file is ours
    rows       a message as a row
    store      what is done to the rows, inside a transaction
    life       which consumers live, told by the kernel; what the dead held goes back
    publisher, consumer, driver
"""

from workqueue.transports.sqlite.driver import SQLiteTransport

__all__ = ["SQLiteTransport"]
