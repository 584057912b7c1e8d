"""Several machines on one: pools in network namespaces behind a real balancer, under load and through faults.

``python -m tests.cluster`` runs all trials at full length; tests/live/test_cluster.py runs a short form of each.

- ``network``: the namespaces, and the cables between them.
- ``machines``: a pool in a namespace. ``balancers``: HAProxy and Envoy in another one.
- ``load``: the clients, a process of their own.
- ``trials``: what is done to the pools meanwhile, and what is counted.
- ``report``: the tables and the picture of docs/CLUSTER.md.
- ``fleet``: a thousand machines, in virtual time.
"""
