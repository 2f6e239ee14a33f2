"""The built-in transports, one module or package each, found through entry points like any other."""
