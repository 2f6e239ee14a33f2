"""Where a job runs: in child processes, in threads, or as a command. One file each.

runner      what a runner is: deliveries in, endings out
handler     finding a handler by name, and calling it with a job
thread      in this process
coroutine   in this process, all on one event loop
process     in child processes, one per slot
child       what such a child does
command     as a command, started for each message
guard       starts children so that none outlives the worker
watchdog    what ends them when the worker itself was killed
"""
