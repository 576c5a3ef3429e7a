"""How this machine gets into a mesh and stays there.

============  ===========================================================
``reach``     where others reach this machine, or that they cannot
``join``      keeps this machine in the mesh of one facade
``tunnel``    serves a facade over a connection that this machine dialled
``announce``  keeps this machine in etcd, for all facades
============  ===========================================================
"""
