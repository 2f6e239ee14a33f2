"""The built-in transports, one module or package each, found through entry points as all are."""
