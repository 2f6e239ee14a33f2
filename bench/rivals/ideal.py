"""No queue at all: the same naps in a loop, which is as good as any queue can be."""

import sys

import clock

print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    clock.nap()
