"""The rules of the mesh, pure: bytes, events and a clock reading go in; values come out.

Nothing here does I/O, reads a clock, draws randomness, logs or waits. The daemon and the simulator drive the same
code. docs/protocol.md is its specification.
"""
