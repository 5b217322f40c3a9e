"""A job's certificate: what proves its results, in one file that needs no network (docs/protocol-3.md, section 8)."""
