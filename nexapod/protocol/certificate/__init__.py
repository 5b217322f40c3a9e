"""A job's certificate: what proves its results, in one file that needs no network (docs/protocol.md, section 8)."""
