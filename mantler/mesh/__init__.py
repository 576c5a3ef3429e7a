"""The mesh as one facade sees it: which machines serve which models, and which of them gets a request.

Everything here is pure: no I/O, no event loop, no clock of its own. Times are seconds of one monotonic clock, the
caller's, and arrive as ``now_s``. Nothing here is safe to share between threads; a facade uses it from its event loop.

==================  ===================================================================
``machine``         a machine and the mantles on it
``membership``      what is heard of machines: registrations, leases, reports, farewells
``directory``       all of that put together: who is online, who serves what
``load``            how busy each machine is
``prefix``          the beginning of a request as a chain of hashes
``affinity``        which machines lately got which beginnings
``breaker``         keeps requests away from a machine that fails
``balancer``        chooses a machine
``retries``         whether, and how soon, a request is tried elsewhere
==================  ===================================================================
"""
