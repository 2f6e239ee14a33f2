"""The command line: one module per command or panel, each parse → call → print.

main       the entry point, and how errors become lines and exit codes
options    the options every command has, and how values are written
settings   where defaults come from: environment and configuration files
output     data to stdout, talk to stderr
send       workqueue send
work       workqueue work
demo       workqueue demo
torture    workqueue torture
look       workqueue status, peek
watch      workqueue watch
dead       workqueue dead list, show, requeue, drop
mend       workqueue purge, delete, migrate
setup      workqueue declare, plugins, config
doctor     workqueue doctor
"""
