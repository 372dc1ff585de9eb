"""Networks behind a router in user space: no privilege needed, the host's sockets carry everything."""
