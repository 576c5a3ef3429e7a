"""Breaks machines on purpose while requests run, and counts what their clients notice.

==================  ===================================================================
``schedule``        which machine is broken when, how, and for how long; pure
``verdict``         what became of the streams, against what they should have been; pure
``machines``        the runtimes and the facade, as processes that can be killed and frozen
``traffic``         clients that stream through the facade
``run``             all of it together
``command``         ``mantler drill``
==================  ===================================================================
"""
