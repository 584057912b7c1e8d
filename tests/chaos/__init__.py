"""A chaos suite: faults at random but replayable, clients that check every byte, and a reason for each loss.

``make chaos`` runs it for an hour. docs/CHAOS.md explains it.

* ``schedule``: which fault strikes when, drawn from a seed (pure)
* ``service``: the program under chaos, and what a request may ask of its handlers
* ``clients``: clients that ask again and again, and clients that misbehave
* ``faults``: what is done to the pool
* ``invariants``: what must hold at every moment, judged over samples (pure)
* ``verdict``: which fault explains which loss (pure), and the table of a run
* ``pool``, ``observe``, ``episode``: start and stop the program, sample it, and run all of it together
"""
