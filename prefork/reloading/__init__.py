"""New code in a running master: the trial, the exec in place, and what goes on."""
