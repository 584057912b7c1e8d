"""Several machines and the balancers in front of them. ``fleet``: a thousand machines, in virtual time."""
