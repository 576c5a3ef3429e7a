"""Who may talk to whom: TLS on every connection that leaves the machine.

A process loads its material once and passes it to whatever opens or accepts connections::

    security = Security.load(settings)             # mantler.security.transport; raises SecurityError
    port = security.listen(server, address)
    client = RuntimeClient(address, security)

==================  ===================================================================
``transport``       :class:`Security`: gRPC servers and channels
``https``           the same for the facade's HTTP server
``files``           the PEM files of the settings: read, checked, watched for changes
``authority``       an authority of one's own and the certificates that it issues
``loopback``        which addresses never leave the machine
``errors``          :class:`SecurityError`, which stops a process at its start
==================  ===================================================================
"""
