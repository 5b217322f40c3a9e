"""Version 3 of the protocol, growing beside version 2 until it is better: docs/protocol-3.md says what it is to do.

Nothing outside this package and its simulator uses it yet. It shares with version 2 the plain values of
nexapod.protocol.types and the errors, and takes version 2's place in nexapod.protocol when the daemon speaks it.
"""
