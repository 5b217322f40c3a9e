"""NEXAPod: a peer-to-peer mesh daemon for scientific computing, with no server."""
