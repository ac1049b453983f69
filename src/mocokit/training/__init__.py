"""How the algorithm is trained: optimizer, Lightning module, monitor, checkpoints. Read ``fit.py`` first."""
