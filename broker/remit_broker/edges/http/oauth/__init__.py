"""``/oauth`` and its metadata: how programs that know OAuth, and nothing of Remit, get and give back what lets them act."""
