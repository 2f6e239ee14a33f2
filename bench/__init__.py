"""How fast workqueue is, beside others, on this machine: see __main__."""
