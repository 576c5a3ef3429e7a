"""The mesh as a client: finds machines, keeps connections to them, and sends each request to one that can answer.

What decides is in :mod:`mantler.mesh` and does no I/O; here are the event loop, gRPC and the clock.

==================  ===================================================================
``client``          :class:`MeshClient`: generation that goes on when a machine dies, counts, models
``edges``           :class:`EdgeClient`: the same through facades
``attempt``         one call of one machine, which can be given up from outside
``prompt_bytes``    a prompt as the bytes that prefix affinity compares
``view``            what is known of the machines, kept up to date by a membership
``static``          a membership: a list of addresses, asked in turns
==================  ===================================================================
"""
