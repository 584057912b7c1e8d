"""The pool as the master keeps it: what is decided and what is done about its workers."""
