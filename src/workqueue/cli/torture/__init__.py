"""workqueue torture: break it on purpose, and count what was lost.

ledger     histories, one line a write
checker    the verdict: what was promised, held against the histories
nemesis    what is done to whom and when, from a seed
proxy      a TCP proxy with faults
sender     a tortured sender, a process
handler    what the tortured workers run
siege      a run, from the first process to the verdict
command    the command line
"""
